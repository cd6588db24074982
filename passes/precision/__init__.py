"""Compute in half precision or TF32; flush denormal weights to zero."""
