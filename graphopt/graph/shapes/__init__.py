"""Shape inference where onnx has none, or differs from ONNX Runtime."""
