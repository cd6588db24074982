"""Combinatorial solvers: memory plans, algorithm and layout selection, pipeline stages, tile search."""
