"""GPUs: their description, the schedule rules of their kernels, and code for CUDA and OpenCL."""
