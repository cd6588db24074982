"""What holds for every test."""

import os


def pytest_configure() -> None:
    """Choose by estimates unless a test says otherwise: a measurement takes time and need not come out the same."""
    os.environ.setdefault("GRAPHOPT_COSTS", "roofline")
