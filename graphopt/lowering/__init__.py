"""Lowering of rewritten models to stages of kernel calls and fallback models."""
