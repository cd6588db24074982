"""Verification of programs and rewritten models against ONNX Runtime."""
