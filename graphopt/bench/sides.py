"""Sides of a benchmark: opened models that run on host arrays and time blocks of runs with a clock of their own."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from graphopt.bench import timing

Run = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Feeds by input name -> outputs by name, new arrays."""

MOST_SETS = 256
"""Most copies of memory that runs rotate through; models so small that these fit a 50 MiB cache take microseconds."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings that all sides of a benchmark share.

    `threads` are the threads of every operator on the host, `costs` the source of graphopt's own choices; `target`,
    `level` and `precision` are options of `compile_model`.
    """

    threads: int
    costs: str | None = None
    target: str = "llvm"
    level: str | None = None
    precision: str = "fp32"

    @property
    def cuda(self) -> bool:
        """Whether peers run on an NVIDIA GPU too. They do not support OpenCL: beside it they run on the CPU."""
        return self.target == "cuda"


class Side(Protocol):
    """A model, ready to run.

    `device_bytes` is its memory on a device, None on the host; `sets` the number of copies of its memory that the runs
    of a block rotate through.
    """

    device_bytes: int | None
    sets: int

    def run(self, feeds: Mapping[str, Any]) -> Mapping[str, Any]:
        """The outputs by name, as arrays of the host."""

    def block(self, feeds: Mapping[str, Any]) -> timing.Block:
        """A timed block of runs on `feeds`; on a device the feeds are there already."""


@dataclass(slots=True)
class HostSide:
    """A function on arrays, timed by the host's clock."""

    function: Run
    device_bytes: int | None = None
    sets: int = 1

    def run(self, feeds: Mapping[str, Any]) -> Mapping[str, Any]:
        """The outputs of the function."""
        return self.function(feeds)

    def block(self, feeds: Mapping[str, Any]) -> timing.Block:
        """A block of calls timed by the host's clock."""
        return timing.by_clock(functools.partial(self.function, feeds))


def sets(cache_bytes: int, nbytes: int) -> int:
    """Number of copies of `nbytes` to rotate through, so that no run finds data of its previous one in the cache."""
    if nbytes > cache_bytes:
        return 1
    return min(MOST_SETS, 1 + math.ceil(cache_bytes / max(nbytes, 1)))
