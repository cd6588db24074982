"""Costs of kernels: workloads, roofline estimates, measured costs and the table that keeps them."""
