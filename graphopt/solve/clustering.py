"""Cluster sparse rows into groups that need the same columns, so that a group's columns are dense blocks.

    min  sum over groups g of |union over rows i of g of S_i|     groups of `height` rows, the last one may be smaller

S_i is the set of columns in which row i is not zero. The objective is the connectivity of a hypergraph whose vertices
are rows and whose nets are columns, with balanced parts. `cluster` seeds each group with the densest row that is left,
adds the row by which the union grows least, then exchanges pairs of rows while the sum falls.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.bool_]
"""[rows, columns]: whether a row is not zero in a column."""

CANDIDATES = 96
"""Rows that share most with the seed, of which a group takes its members."""

SWEEPS = 3
"""Rounds of exchanges, at most."""

PARTNERS = 3
"""Groups that a row is offered to in each round: those in which it adds the fewest columns."""

HOPELESS = 0.9
"""Rows of which a greedy order leaves more than this share of the given order's columns have little in common; in large
problems they are not exchanged."""

EFFORT, MOST_STARTS = 20_000, 16
"""Small problems are solved from several random orders too: `EFFORT` over the square of their rows, times the words of
64 columns."""


LARGEST, HASHES = 8192, 4
"""More rows are first sorted by `HASHES` MinHash values (Broder, 1997: rows share one as often as they share columns),
then clustered in parts of so many: the effort grows with the square of the rows of a part."""


@dataclass(frozen=True, slots=True)
class Problem:
    """The supports of all rows, and the rows of a group."""

    supports: Rows
    height: int


@dataclass(frozen=True, slots=True)
class Solution:
    """The order of the rows, of which each `height` make a group; the columns of all groups, and a bound on them."""

    order: tuple[int, ...]
    columns: int
    bound: int

    @property
    def gap(self) -> float:
        """(columns - bound) / columns: 0 if no order is better."""
        return (self.columns - self.bound) / self.columns if self.columns else 0.0


def columns_of(problem: Problem, order: NDArray[np.integer] | tuple[int, ...]) -> int:
    """Columns of all groups of an order."""
    return sum(int(union.sum()) for union in unions(problem, order))


def unions(problem: Problem, order: NDArray[np.integer] | tuple[int, ...]) -> Iterator[Rows]:
    """The columns that each group needs."""
    sorted_rows = problem.supports[np.asarray(order, np.int64)]
    for first in range(0, len(sorted_rows), problem.height):
        yield np.logical_or.reduce(sorted_rows[first : first + problem.height], axis=0)


def bound(problem: Problem) -> int:
    """A lower bound on the columns of any order.

    A column of c rows lies in at least c / height groups. A group needs at least the columns of its densest row, and
    no choice of groups has smaller densest rows than that of neighbours by density.
    """
    per_column = -(-problem.supports.sum(axis=0, dtype=np.int64) // problem.height)
    sizes = np.sort(problem.supports.sum(axis=1, dtype=np.int64))[::-1]
    return max(int(per_column.sum()), int(sizes[:: problem.height].sum()))


def expected_of_random(density: float, height: int) -> float:
    """The share of vectors of `height` that a random mask of `density` leaves: one in which not all are zero."""
    return 1.0 - (1.0 - density) ** height


def validate(problem: Problem, solution: Solution) -> list[str]:
    """Reasons why `solution` is wrong, independent of the solver."""
    if sorted(solution.order) != list(range(len(problem.supports))):
        return [f"the order of {len(solution.order)} rows is no permutation of {len(problem.supports)}"]
    reasons = []
    columns = columns_of(problem, solution.order)
    if columns != solution.columns:
        reasons.append(f"the groups need {columns} columns, the solution says {solution.columns}")
    if solution.bound > columns:
        reasons.append(f"the bound {solution.bound} is above the {columns} columns of the groups")
    return reasons


def as_given(problem: Problem) -> Solution:
    """The rows as they are."""
    order = np.arange(len(problem.supports))
    return Solution(tuple(order.tolist()), columns_of(problem, order), bound(problem))


def cluster(problem: Problem) -> Solution:
    """The best order found; never worse than the one given."""
    given = as_given(problem)
    if problem.height == 1 or given.columns == given.bound:
        return given
    if len(problem.supports) > max(LARGEST, problem.height):
        order = _in_parts(problem)
        columns = columns_of(problem, order)
        return Solution(tuple(order.tolist()), columns, given.bound) if columns < given.columns else given
    generator, rows = np.random.default_rng(0), len(problem.supports)
    starts = min(MOST_STARTS, EFFORT // (rows**2 * -(-problem.supports.shape[1] // 64) or 1))
    best = given
    for begin in (_greedy(problem), *(generator.permutation(rows) for _ in range(starts))):
        groups = _Groups(problem.supports, begin, problem.height)
        if starts or groups.columns <= HOPELESS * given.columns:
            groups.exchange(given.bound)
        order = groups.order()
        columns = columns_of(problem, order)
        if columns < best.columns:
            best = Solution(tuple(order.tolist()), columns, given.bound)
        if best.columns == best.bound:
            break
    return best


def _in_parts(problem: Problem) -> NDArray[np.int64]:
    """Rows that have much in common are neighbours; parts of neighbours are clustered each for itself."""
    generator = np.random.default_rng(0)
    hashes = [
        problem.supports[:, generator.permutation(problem.supports.shape[1])].argmax(axis=1) for _ in range(HASHES)
    ]
    order = np.lexsort(hashes)
    size = max(1, LARGEST // problem.height) * problem.height
    parts = (order[first : first + size] for first in range(0, len(order), size))
    return np.concatenate(
        [part[list(cluster(Problem(problem.supports[part], problem.height)).order)] for part in parts]
    )


def _packed(rows: Rows) -> NDArray[np.uint64]:
    """The rows as bits of 64-bit words."""
    words = -(-rows.shape[1] // 64)
    padded = np.zeros((len(rows), words * 64), np.bool_)
    padded[:, : rows.shape[1]] = rows
    return np.packbits(padded, axis=1).view(np.uint64)


def _count(words: NDArray[np.uint64]) -> NDArray[np.int64]:
    counts: NDArray[np.int64] = np.bitwise_count(words).sum(axis=-1, dtype=np.int64)
    return counts


def _greedy(problem: Problem) -> NDArray[np.int64]:
    bits = _packed(problem.supports)
    sizes = _count(bits)
    left = np.argsort(-sizes, kind="stable")
    order: list[int] = []
    while len(left):
        seed, left = int(left[0]), left[1:]
        order.append(seed)
        union, missing = bits[seed].copy(), problem.height - 1
        if missing >= len(left):
            order += left.tolist()
            break
        # Few columns that the seed lacks come first, then many that it has.
        shared = _count(bits[left] & union)
        rank = np.argsort((sizes[left] - shared) - shared * 1e-6, kind="stable")[: max(CANDIDATES, 4 * missing)]
        candidates = left[rank]
        taken = np.zeros(len(candidates), np.bool_)
        for _ in range(missing):
            growth = _count(bits[candidates] & ~union).astype(np.float64) - sizes[candidates] * 1e-6
            growth[taken] = np.inf
            best = int(np.argmin(growth))
            taken[best] = True
            union |= bits[candidates[best]]
            order.append(int(candidates[best]))
        left = left[~np.isin(left, candidates[taken])]
    return np.array(order, np.int64)


class _Groups:
    """Groups of rows that change by exchanges."""

    def __init__(self, supports: Rows, order: NDArray[np.int64], height: int) -> None:
        self.bits = _packed(supports)
        self.members = [order[first : first + height].copy() for first in range(0, len(order), height)]
        self.unions = np.stack([np.bitwise_or.reduce(self.bits[rows], axis=0) for rows in self.members])

    @property
    def columns(self) -> int:
        """Columns of all groups."""
        return int(_count(self.unions).sum())

    def order(self) -> NDArray[np.int64]:
        """The rows, group after group."""
        return np.concatenate(self.members)

    def exchange(self, target: int) -> None:
        """Exchange pairs of rows of two groups while that needs fewer columns, until all groups need `target`."""
        for _ in range(SWEEPS):
            before = self.columns
            if before <= target or len(self.members) < 2:
                return
            for group in range(len(self.members)):
                for place in range(len(self.members[group])):
                    self._move(group, place)
            if self.columns > before * 0.999:
                return

    def _move(self, group: int, place: int) -> None:
        """Exchange one row for the best partner, if there is one that saves columns."""
        row = self.members[group][place]
        rest = np.bitwise_or.reduce(np.delete(self.bits[self.members[group]], place, axis=0), axis=0, initial=0)
        saved = int(_count(self.unions[group] & ~rest))
        if not saved:
            return
        added = _count(self.bits[row] & ~self.unions)
        added[group] = np.iinfo(np.int64).max
        best, gain = None, 0
        size = int(_count(self.unions[group]))
        for other in np.argsort(added, kind="stable")[: min(PARTNERS, len(added) - 1)].tolist():
            rows = self.bits[self.members[other]]
            without = _all_but_one(rows) | self.bits[row]
            here = _count(rows | rest)
            there = _count(without)
            gains = size + int(_count(self.unions[other])) - here - there
            at = int(np.argmax(gains))
            if int(gains[at]) > gain:
                best, gain = (other, at), int(gains[at])
        if best is None:
            return
        other, at = best
        self.members[group][place], self.members[other][at] = self.members[other][at], row
        for changed in (group, other):
            self.unions[changed] = np.bitwise_or.reduce(self.bits[self.members[changed]], axis=0)


def _all_but_one(rows: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """For each row the union of the others."""
    before = np.zeros_like(rows)
    after = np.zeros_like(rows)
    before[1:] = np.bitwise_or.accumulate(rows[:-1], axis=0)
    after[:-1] = np.bitwise_or.accumulate(rows[:0:-1], axis=0)[::-1]
    return before | after
