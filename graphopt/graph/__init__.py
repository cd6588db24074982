"""Analyses and edits of ONNX graphs."""
