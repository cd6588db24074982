"""Passes and tools on TensorIR functions: inlining, exact floating point, expressions and statements."""
