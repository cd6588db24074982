"""The version of graphopt, which artifacts and benchmarks record."""

VERSION = "0.1.0"
