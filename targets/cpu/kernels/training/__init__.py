"""Kernels of the backward pass."""
