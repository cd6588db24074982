"""Kernels of GPUs: what is defined for them alone, and how everything is bound to blocks and threads."""
