"""Kernels of CPUs that multiply the blocks of block-sparse weights."""
