"""ONNX node of the backward pass -> Relax, where one definition fits all targets."""
