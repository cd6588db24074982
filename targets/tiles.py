"""The tiles that the kernel of a work may use: a small generated space per kind of kernel, the best estimate first."""

from __future__ import annotations

from collections.abc import Callable

from graphopt.targets.machine import CpuMachine
from graphopt.work import Work

Space = Callable[[Work, CpuMachine], tuple[str, ...]]

SPACES: dict[tuple[str, str], Space] = {}
"""By domain and operator."""

WIDE: dict[tuple[str, str], Space] = {}
"""The same, every tile that the kernel can be built with."""

DEFAULT = ("",)


def tiles(work: Work, machine: CpuMachine) -> tuple[str, ...]:
    """Spellings of the tiles; a single empty one, the kernel's own choice, where there is nothing to choose."""
    space = SPACES.get((work.domain, work.op_type))
    return DEFAULT if space is None else space(work, machine) or DEFAULT


def wide(work: Work, machine: CpuMachine) -> tuple[str, ...]:
    """Spellings of all tiles; none where there is nothing to choose."""
    space = WIDE.get((work.domain, work.op_type))
    return () if space is None else space(work, machine)
