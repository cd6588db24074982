"""Batch, join and tile matrix products."""
