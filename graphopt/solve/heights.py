"""Cut ordered rows into ranges, each with groups of one height, so that computing the groups takes the least time.

    min  sum over ranges ( range_seconds + sum over groups g of its kind:
                           group_seconds + column_seconds * |union over rows i of g of S_i| )

S_i is the set of columns in which row i is not zero; for a dense kind every column counts. This is the dynamic
programme of one-dimensional variable block rows (1D-VBR), with the kind of a range as a second state: linear in rows
times kinds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Kind:
    """Groups of `height` rows, a power of two; the last group of all may be smaller. `dense`: all columns count."""

    height: int
    column_seconds: float
    group_seconds: float = 0.0
    dense: bool = False


@dataclass(frozen=True, slots=True)
class Problem:
    """[rows, columns]: what is not zero; the kinds of groups, and what a range costs beside its groups."""

    supports: NDArray[np.bool_]
    kinds: tuple[Kind, ...]
    range_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Range:
    """Rows from `start` to before `stop` in groups of the kind of number `kind`."""

    start: int
    stop: int
    kind: int


@dataclass(frozen=True, slots=True)
class Solution:
    """The ranges in order, their seconds, and a lower bound on the seconds of any."""

    ranges: tuple[Range, ...]
    seconds: float
    bound: float


def seconds_of(problem: Problem, ranges: Sequence[Range]) -> float:
    """Seconds of all ranges."""
    total = 0.0
    for each in ranges:
        kind = problem.kinds[each.kind]
        starts = np.arange(each.start, each.stop, kind.height)
        columns = len(starts) * problem.supports.shape[1]
        if not kind.dense:
            columns = int(np.logical_or.reduceat(problem.supports[: each.stop], starts, axis=0).sum())
        total += problem.range_seconds + len(starts) * kind.group_seconds + columns * kind.column_seconds
    return total


def bound(problem: Problem) -> float:
    """A lower bound: of its group, each row takes a share of the time that it would need alone."""
    sizes = problem.supports.sum(axis=1, dtype=np.int64)
    shares = [
        ((problem.supports.shape[1] if kind.dense else sizes) * kind.column_seconds + kind.group_seconds) / kind.height
        for kind in problem.kinds
    ]
    least = np.minimum.reduce([np.broadcast_to(share, sizes.shape) for share in shares])
    return float(least.sum()) + (problem.range_seconds if len(sizes) else 0.0)


def validate(problem: Problem, solution: Solution) -> list[str]:
    """Reasons why `solution` is wrong, independent of the solver."""
    end = 0
    for each in solution.ranges:
        if each.start != end or each.stop <= each.start:
            return [f"a range from {each.start} to {each.stop} follows row {end}"]
        end = each.stop
    if end != len(problem.supports):
        return [f"the ranges end at {end} of {len(problem.supports)} rows"]
    reasons = []
    seconds = seconds_of(problem, solution.ranges)
    if not np.isclose(seconds, solution.seconds, rtol=1e-9, atol=0.0):
        reasons.append(f"the ranges take {seconds} s, the solution says {solution.seconds} s")
    if solution.bound > seconds * (1 + 1e-9):
        reasons.append(f"the bound {solution.bound} s is above the {seconds} s of the ranges")
    return reasons


def cut(problem: Problem) -> Solution:
    """The best ranges."""
    rows, kinds = len(problem.supports), problem.kinds
    columns = [_union_sizes(problem, kind) for kind in kinds]
    # Least seconds of the first rows, whatever their last range is; those with a last range of each kind, its start.
    least, last = np.full(rows + 1, np.inf), np.zeros(rows + 1, np.int64)
    within, starts = np.full((rows + 1, len(kinds)), np.inf), np.zeros((rows + 1, len(kinds)), np.int64)
    least[0] = 0.0
    for row in range(1, rows + 1):
        for number, kind in enumerate(kinds):
            latest = row if row == rows else row - kind.height + 1
            for first in range(max(0, row - kind.height), latest):
                begun, goes_on = least[first] + problem.range_seconds, within[first, number]
                group = kind.group_seconds + int(columns[number][first]) * kind.column_seconds
                if min(begun, goes_on) + group < within[row, number]:
                    within[row, number] = min(begun, goes_on) + group
                    starts[row, number] = first if begun < goes_on else starts[first, number]
        last[row] = int(np.argmin(within[row]))
        least[row] = within[row, last[row]]
    ranges: list[Range] = []
    row = rows
    while row:
        kind_of_last = int(last[row])
        ranges.insert(0, Range(int(starts[row, kind_of_last]), row, kind_of_last))
        row = ranges[0].start
    return Solution(tuple(ranges), seconds_of(problem, ranges), bound(problem))


def _union_sizes(problem: Problem, kind: Kind) -> NDArray[np.int64]:
    """For each row the columns that it and the next ones of a group need, as far as there are any."""
    rows, columns = problem.supports.shape
    if kind.dense:
        return np.full(rows, columns, np.int64)
    bits = np.packbits(problem.supports, axis=1)
    bits = np.pad(bits, ((0, 0), (0, -bits.shape[1] % 8))).view(np.uint64)
    length = 1
    while length < kind.height:
        bits[: rows - length] |= bits[length:].copy()
        length *= 2
    return np.asarray(np.bitwise_count(bits).sum(axis=1, dtype=np.int64))
