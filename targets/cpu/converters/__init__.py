"""Converters from ONNX nodes to the kernels of CPUs."""
