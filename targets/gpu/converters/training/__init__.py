"""ONNX node of the backward pass -> kernels of GPUs."""
