"""Fold constants into weights; recognise attention, LayerNormalization and Gelu in elementary operators."""
