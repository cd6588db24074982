"""ONNX node of the backward pass -> kernels of CPUs."""
