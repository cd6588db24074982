"""TE definitions, hand-written loops and schedule rules of the CPU kernels."""
