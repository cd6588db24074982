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
def every_lab(request: pytest.FixtureRequest) -> Lab:
    """Every level that this host can run."""
    if request.param not in executable_levels():
        pytest.skip(f"this host cannot run {request.param}")
    return Lab(CpuTarget(request.param))


@pytest.fixture(scope="session", params=list(LEVELS))
def any_lab(request: pytest.FixtureRequest) -> Lab:
    """Every level that this host can run and that has code of its own for floats: VNNI changes only sums of bytes."""
    levels = executable_levels()
    if request.param not in levels:
        pytest.skip(f"this host cannot run {request.param}")
    first = next(name for name in levels if LEVELS[name].mcpu == LEVELS[request.param].mcpu)
    if first != request.param:
        pytest.skip(f"floats are computed as on {first}")
    return Lab(CpuTarget(request.param))
