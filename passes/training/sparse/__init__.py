"""Sparse weights from the first step on, and groups of them that move."""
