"""Packings in layers: the lowest free place is filled with buffers that cover as much of its time as possible.

The floor is the end of the highest buffer at every step. Where it is lowest, buffers that live within that time stand
on it side by side; which of them is a weighted choice of intervals. A step weighs more, the less room it has left
above the buffers that must still go there. What stays uncovered is lost up to the lower one of its neighbours. Several
choices are tried, with chance in the weights, where buffers fit without room to spare.
"""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Sequence

import numpy as np

from graphopt.solve.memory_table import Found, Table

_SEED = 20233
_HIGHEST = 1 << 60

ATTEMPTS = 150
"""Packings that are tried at most."""


def improve(table: Table, incumbent: Found, bound: int, effort: int) -> Found:
    """The incumbent, or the lowest packing found within `effort`, in buffers looked at."""
    chance = random.Random(_SEED)
    best = incumbent
    left = effort
    for attempt in range(ATTEMPTS):
        if left <= 0 or best.height <= bound:
            break
        noise = 0.0 if attempt == 0 else chance.choice((0.05, 0.2, 0.5, 1.0))
        aim = bound if attempt % 2 == 0 else (bound + best.height) // 2
        layers = _Layers(
            table, aim, [1.0 + noise * chance.random() for _ in table.sizes], chance.choice((0.0, 0.3, 1.0))
        )
        offsets = layers.run(best.height)
        left -= max(layers.work, 1)
        if offsets is not None:
            height = max(offset + size for offset, size in zip(offsets, table.sizes, strict=True))
            if height < best.height:
                best = Found(offsets, height, height <= bound, "layers")
    return best


class _Layers:
    """One packing. `aim` is the height that is hoped for, `favour` multiplies what a buffer counts."""

    def __init__(self, table: Table, aim: int, favour: Sequence[float], tall: float) -> None:
        self.work = 0
        self._sizes, self._aim, self._favour = table.sizes, aim, favour
        self._tall = tall / max(table.sizes)
        steps = np.array(sorted(set(table.firsts)), np.int64)  # where a buffer starts: those that overlap share one
        self._from = np.searchsorted(steps, table.firsts, side="left").tolist()
        self._to = np.searchsorted(steps, table.lasts, side="right").tolist()
        self._floor = [0] * len(steps)
        self._remaining = [0] * len(steps)
        for size, begin, end in zip(self._sizes, self._from, self._to, strict=True):
            for step in range(begin, end):
                self._remaining[step] += size

    def run(self, limit: int) -> list[int] | None:
        """The offsets; None as soon as the height reaches `limit`."""
        offsets = [0] * len(self._sizes)
        open_ = sorted(range(len(self._sizes)), key=lambda index: (self._to[index], self._from[index]))
        floor, remaining = self._floor, self._remaining
        while open_:
            level = min(height for height, more in zip(floor, remaining, strict=True) if more)
            weights = [1.0 / (1 + max(0, self._aim - f - r)) for f, r in zip(floor, remaining, strict=True)]
            before = list(itertools.accumulate(weights, initial=0.0))
            for begin, end in self._runs(level):
                for index in self._cover(begin, end, open_, before):
                    offsets[index] = level
                    top = level + self._sizes[index]
                    for step in range(self._from[index], self._to[index]):
                        floor[step] = top
                        remaining[step] -= self._sizes[index]
                        if top + remaining[step] >= limit:
                            return None
                    open_.remove(index)
            for begin, end in self._runs(level):  # what is left uncovered
                sides = [floor[step] for step in (begin - 1, end) if 0 <= step < len(floor) and remaining[step]]
                raised = min((side for side in sides if side > level), default=_HIGHEST)
                if raised < _HIGHEST:
                    for step in range(begin, end):
                        floor[step] = raised
                        if raised + remaining[step] >= limit:
                            return None
        return offsets

    def _runs(self, level: int) -> list[tuple[int, int]]:
        """Times in which the floor is at `level` and buffers remain."""
        found, begin = [], -1
        for step in range(len(self._floor) + 1):
            low = step < len(self._floor) and self._floor[step] == level and self._remaining[step] > 0
            if low and begin < 0:
                begin = step
            elif not low and begin >= 0:
                found.append((begin, step))
                begin = -1
        return found

    def _cover(self, begin: int, end: int, open_: Sequence[int], before: Sequence[float]) -> list[int]:
        """Buffers that live between `begin` and `end`, no two at once, of the greatest total weight."""
        inside = [index for index in open_ if self._from[index] >= begin and self._to[index] <= end]
        self.work += len(open_) + len(inside)
        ends = [self._to[index] for index in inside]
        best = [0.0]
        link = []
        for place, index in enumerate(inside):
            ahead = bisect.bisect_right(ends, self._from[index], 0, place)
            covered = before[self._to[index]] - before[self._from[index]]
            value = covered * self._favour[index] * (1 + self._tall * self._sizes[index]) + best[ahead]
            link.append(ahead if value > best[-1] else -1)
            best.append(max(value, best[-1]))
        chosen = []
        place = len(inside)
        while place:
            if link[place - 1] < 0:
                place -= 1
            else:
                chosen.append(inside[place - 1])
                place = link[place - 1]
        return chosen
