"""Branch and bound for a packing of at most a given height: the last search of `memory.solve`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from graphopt.solve.memory_table import Found, Table

_FIRST_SHARE = 0.6
"""Share of the effort spent on the bound itself, which most problems reach; the rest bisects the heights above it."""


def improve(table: Table, incumbent: Found, bound: int, effort: int) -> Found:
    """The incumbent, or a lower packing found within `effort` (buffers visited), and whether it is optimal.

    Tries the bound first, then bisects between the heights that are proved impossible (or given up) and the best one.
    """
    lowest, best, proved = bound, incumbent, True
    left = effort
    target, share = bound, int(effort * _FIRST_SHARE)
    while lowest < best.height and left > 0:
        offsets, spent, ended = _search(table, target, min(share, left))
        left -= spent
        if offsets is not None:
            height = max(offset + size for offset, size in zip(offsets, table.sizes, strict=True))
            best = Found(offsets, height, height <= bound, "exact search")
        else:
            lowest = target + 1
            proved = proved and ended
        target = (lowest + best.height - 1) // 2
        share = max(left // 4, 1)
    if lowest >= best.height and proved:
        best.optimal = True
    return best


def _search(table: Table, height: int, effort: int) -> tuple[list[int] | None, int, bool]:
    """Offsets that need at most `height`, the work spent, and whether the search space is exhausted.

    The same space is searched under several preference orders, each with a share of the effort: the order that finds a
    packing quickly differs from problem to problem.
    """
    size, first, last = table.sizes, table.firsts, table.lasts
    preferences = (
        [-size[i] * (last[i] - first[i] + 1) for i in range(len(size))],
        [first[i] - last[i] for i in range(len(size))],
        [-size[i] for i in range(len(size))],
    )
    spent = 0
    for rank in preferences:
        descent = _Descent(table, height, rank)
        offsets = descent.run(effort // len(preferences))
        spent += descent.work
        if offsets is not None or descent.ended:
            return offsets, spent, descent.ended
    return None, spent, False


class _Descent:
    """One depth-first search. A node places one more buffer, at the lowest offset that the buffers below it leave free.

    Offsets never fall along a path (equal offsets by rising index), so every packing whose buffers are pushed down as
    far as possible is visited exactly once.
    """

    def __init__(self, table: Table, height: int, rank: Sequence[int]) -> None:
        """Args: height: the limit; rank: the preference of each buffer, the least one first."""
        self.work = 0
        self.ended = False
        self._table = table
        self._height = height
        self._rank = np.array(rank, dtype=np.int64)
        self._sizes = np.array(table.sizes, dtype=np.int64)
        # The load is largest at a step where a buffer starts, so those steps suffice.
        steps = np.array(sorted(set(table.firsts)), dtype=np.int64)
        self._from = np.searchsorted(steps, table.firsts, side="left")
        self._to = np.searchsorted(steps, table.lasts, side="right")
        self._steps = len(steps)

    def run(self, effort: int) -> list[int] | None:
        """Offsets, or None: no packing exists (`ended`), or the effort did not suffice."""
        count = len(self._sizes)
        lowest = np.zeros(count, dtype=np.int64)  # per unplaced buffer: the offset it would get now
        remaining = np.zeros(self._steps, dtype=np.int64)  # unplaced size per step
        for index in range(count):
            remaining[self._from[index] : self._to[index]] += self._sizes[index]
        floor = np.zeros(self._steps, dtype=np.int64)  # end of the highest placed buffer per step
        open_ = np.ones(count, dtype=bool)
        offsets = [0] * count
        path: list[_Node] = []
        node = _Node(lowest, floor, remaining, self._candidates(lowest, open_, 0, -1))
        while True:
            if not node.candidates:
                if not path:
                    self.ended = True
                    return None
                node, placed = path.pop(), node.placed
                open_[placed] = True
                continue
            self.work += count
            if self.work > effort:
                return None
            index = node.candidates.pop()
            child = self._place(node, index)
            if child is None:
                continue
            offsets[index] = int(node.lowest[index])
            open_[index] = False
            path.append(node)
            if len(path) == count:
                return offsets
            child.candidates = self._candidates(child.lowest, open_, offsets[index], index)
            node = child

    def _place(self, node: _Node, index: int) -> _Node | None:
        """The node after placing `index`, or None if some step can no longer hold the remaining buffers."""
        offset = int(node.lowest[index])
        end = offset + self._sizes[index]
        span = slice(self._from[index], self._to[index])
        floor = node.floor.copy()
        floor[span] = end
        remaining = node.remaining.copy()
        remaining[span] -= self._sizes[index]
        needed = np.where(remaining > 0, np.maximum(floor, offset) + remaining, floor)
        if int(needed.max()) > self._height:
            return None
        lowest = node.lowest.copy()
        near = self._table.arrays[index]
        lowest[near] = np.maximum(lowest[near], end)
        return _Node(lowest, floor, remaining, [], index)

    def _candidates(
        self, lowest: npt.NDArray[np.int64], open_: npt.NDArray[np.bool_], offset: int, index: int
    ) -> list[int]:
        """Buffers that may come next, the preferred one last."""
        unplaced = np.flatnonzero(open_)
        at = lowest[unplaced]
        # A buffer that starts where another could already have ended leaves a hole for that one: skip it.
        ceiling = int((at + self._sizes[unplaced]).min())
        fits = (at < ceiling) & ((at > offset) | ((at == offset) & (unplaced > index)))
        chosen = unplaced[fits]
        sort = np.lexsort((chosen, self._rank[chosen], lowest[chosen]))
        result: list[int] = chosen[sort[::-1]].tolist()
        return result


class _Node:
    """State after placing the buffers of a path; `placed` is the last of them."""

    __slots__ = ("candidates", "floor", "lowest", "placed", "remaining")

    def __init__(
        self,
        lowest: npt.NDArray[np.int64],
        floor: npt.NDArray[np.int64],
        remaining: npt.NDArray[np.int64],
        candidates: list[int],
        placed: int = -1,
    ) -> None:
        self.lowest = lowest
        self.floor = floor
        self.remaining = remaining
        self.candidates = candidates
        self.placed = placed
