"""Native kernels of this host and of the levels that it can run."""

from __future__ import annotations

import pytest

from graphopt.targets.cpu.machine import LEVELS
from graphopt.targets.cpu.target import CpuTarget
from tests.helpers.lab import Lab, executable_levels


@pytest.fixture(scope="session")
def lab() -> Lab:
    """The best level of this host."""
    return Lab(CpuTarget())


@pytest.fixture(scope="session", params=list(LEVELS))
def any_lab(request: pytest.FixtureRequest) -> Lab:
    """Every level that this host can run."""
    if request.param not in executable_levels():
        pytest.skip(f"this host cannot run {request.param}")
    return Lab(CpuTarget(request.param))
