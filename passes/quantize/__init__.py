"""Compute on quantized bytes instead of dequantized floats."""
