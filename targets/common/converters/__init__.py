"""Converters from ONNX nodes to Relax calls that every target shares."""
