"""The opsets that models are converted to."""

OPSET = 20
"""Older models are converted to this one: Gelu (20) and LayerNormalization (17) exist, and TVM imports it."""

BFLOAT16_OPSET = 22
"""The first opset whose convolutions and poolings take bfloat16."""
