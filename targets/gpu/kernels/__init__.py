"""Kernel templates for GPUs, and the schedules that bind all other loops to blocks and threads."""
