"""Memory planning: arena offsets for buffers with known lifetimes, in as few bytes as possible.

Two buffers that are alive at the same step must not overlap (dynamic storage allocation, NP-complete). The lower bound
is the largest sum of live bytes over the steps. Most networks reach it; so the solver tries cheap greedy orders first,
then packings in layers, a local search over orders and an exact search, and stops as soon as the bound is met. All
limits are counts of work, never seconds: the same problem gives the same offsets on every machine.

The exact search places buffers by rising offset, each as low as the buffers below it allow. It cuts a branch when some
step cannot hold the remaining buffers, or when an unplaced buffer would fit entirely below the one being placed (after
the canonical search of Moffitt, "MiniMalloc", ASPLOS 2023; the local search follows the hill climber of Arm's Vela
compiler).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphopt.errors import SolverError
from graphopt.program.program import ALIGNMENT
from graphopt.solve import memory_search as search
from graphopt.solve.memory_table import Table


@dataclass(frozen=True, slots=True)
class Buffer:
    """`size` bytes that are live from step `first` to step `last`, both included."""

    size: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class MemoryProblem:
    """Buffers to place at multiples of `alignment` bytes."""

    buffers: tuple[Buffer, ...]
    alignment: int = ALIGNMENT


@dataclass(frozen=True, slots=True)
class MemorySolution:
    """`offsets[i]` is the start of buffer i. Every plan needs `lower_bound` bytes, this one `arena_bytes`.

    `optimal`: no plan needs less, because the bound is met or the exact search completed. `method` found the plan.
    """

    offsets: tuple[int, ...]
    arena_bytes: int
    lower_bound: int
    optimal: bool
    method: str


def lower_bound(problem: MemoryProblem) -> int:
    """The largest sum over the steps of the live bytes, each buffer rounded up to the alignment."""
    events: dict[int, int] = {}
    for buffer in problem.buffers:
        size = -(-buffer.size // problem.alignment) * problem.alignment
        events[buffer.first] = events.get(buffer.first, 0) + size
        events[buffer.last + 1] = events.get(buffer.last + 1, 0) - size
    live = highest = 0
    for step in sorted(events):
        live += events[step]
        highest = max(highest, live)
    return highest


def solve(problem: MemoryProblem, effort: int = 3_000_000) -> MemorySolution:
    """Offsets for all buffers.

    Args:
        problem: sizes from 0 on, `first <= last`.
        effort: work limit of the local and the exact search each, in buffers visited; the default is about a second.
            0 leaves only the greedy orders.

    Raises:
        SolverError: a buffer has a negative size or ends before it starts, or the alignment is below 1.
    """
    _check(problem)
    unit = problem.alignment
    active = [index for index, buffer in enumerate(problem.buffers) if buffer.size]
    buffers = [problem.buffers[index] for index in active]
    bound = lower_bound(problem)
    table = Table(
        sizes=[-(-buffer.size // unit) for buffer in buffers],
        firsts=[buffer.first for buffer in buffers],
        lasts=[buffer.last for buffer in buffers],
    )
    packing = search.best(table, bound // unit, effort)
    offsets = [0] * len(problem.buffers)
    for index, offset in zip(active, packing.offsets, strict=True):
        offsets[index] = offset * unit
    return MemorySolution(tuple(offsets), packing.height * unit, bound, packing.optimal, packing.method)


def validate(problem: MemoryProblem, solution: MemorySolution) -> list[str]:
    """Every reason why `solution` does not solve `problem`, as a sentence; shares no code with `solve`."""
    buffers, offsets = problem.buffers, solution.offsets
    if len(offsets) != len(buffers):
        return [f"there are {len(offsets)} offsets for {len(buffers)} buffers"]
    reasons = []
    for index, (buffer, offset) in enumerate(zip(buffers, offsets, strict=True)):
        if offset < 0 or offset % problem.alignment:
            reasons.append(f"buffer {index} starts at {offset}, not at a multiple of {problem.alignment}")
        if offset + buffer.size > solution.arena_bytes:
            reasons.append(
                f"buffer {index} ends at {offset + buffer.size}, outside the arena of {solution.arena_bytes}"
            )
    start = np.array(offsets, dtype=np.int64)
    end = start + np.array([buffer.size for buffer in buffers], dtype=np.int64)
    first = np.array([buffer.first for buffer in buffers], dtype=np.int64)
    last = np.array([buffer.last for buffer in buffers], dtype=np.int64)
    for index in range(len(buffers)):
        rest = slice(index + 1, None)
        coexist = (first[rest] <= last[index]) & (first[index] <= last[rest])
        overlap = (start[rest] < end[index]) & (start[index] < end[rest])
        reasons += [
            f"buffers {index} and {index + 1 + other} overlap in time and in memory"
            for other in np.flatnonzero(coexist & overlap)
        ]
    for step in sorted({buffer.first for buffer in buffers}):
        live = sum(buffer.size for buffer in buffers if buffer.first <= step <= buffer.last)
        if live > solution.arena_bytes:
            reasons.append(f"{live} bytes are live at step {step}, more than the arena of {solution.arena_bytes}")
    if not 0 <= solution.lower_bound <= solution.arena_bytes:
        reasons.append(f"the lower bound {solution.lower_bound} is above the arena of {solution.arena_bytes}")
    return reasons


def _check(problem: MemoryProblem) -> None:
    if problem.alignment < 1:
        raise SolverError(f"the alignment is {problem.alignment}: it must be at least 1")
    for index, buffer in enumerate(problem.buffers):
        if buffer.size < 0 or buffer.first > buffer.last:
            raise SolverError(f"buffer {index} is not possible: {buffer} needs a size from 0 on and first <= last")
