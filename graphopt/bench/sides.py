"""What is timed, opened: runs on arrays of the host, and blocks of runs with a clock of its own."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from graphopt.bench import timing

Run = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Feeds by input name -> outputs by name, arrays of the caller's own."""

MOST_SETS = 256
"""Of memory that runs rotate through; a model so small that they fit a cache of 50 MiB takes microseconds anyway."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What all sides of a benchmark have in common.

    `threads` are those of every operator on the host, `costs` what graphopt's own choices go by, `target`, `level` and
    `precision` what `compile_model` takes.
    """

    threads: int
    costs: str | None = None
    target: str = "llvm"
    level: str | None = None
    precision: str = "fp32"

    @property
    def cuda(self) -> bool:
        """Whether peers run on an NVIDIA GPU too. OpenCL they do not know: beside it they run on the CPU."""
        return self.target == "cuda"


class Side(Protocol):
    """A model, ready to run.

    `device_bytes` is the memory that it takes on a device, None on the host; `sets` how many copies of its memory the
    runs of a block go through in turn.
    """

    device_bytes: int | None
    sets: int

    def run(self, feeds: Mapping[str, Any]) -> Mapping[str, Any]:
        """The outputs by name, as arrays of the host."""

    def block(self, feeds: Mapping[str, Any]) -> timing.Block:
        """How its runs on `feeds` are timed; on a device the feeds are there already."""


@dataclass(slots=True)
class HostSide:
    """A function on arrays, timed by the host's clock."""

    function: Run
    device_bytes: int | None = None
    sets: int = 1

    def run(self, feeds: Mapping[str, Any]) -> Mapping[str, Any]:
        """As `Side` says."""
        return self.function(feeds)

    def block(self, feeds: Mapping[str, Any]) -> timing.Block:
        """As `Side` says."""
        return timing.by_clock(functools.partial(self.function, feeds))


def sets(cache_bytes: int, nbytes: int) -> int:
    """How many copies of `nbytes` to go through in turn, so that a run finds nothing of its last one in the cache."""
    if nbytes > cache_bytes:
        return 1
    return min(MOST_SETS, 1 + math.ceil(cache_bytes / max(nbytes, 1)))
