"""Devices that kernels run on: this host, NVIDIA GPUs by CUDA, and OpenCL devices."""
