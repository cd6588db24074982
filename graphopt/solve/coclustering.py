"""Cluster rows and columns of a sparse matrix, so that few blocks of `height` x `width` hold something.

    min  number of pairs (group of rows, group of columns) that have an element      groups of `height` and of `width`

With the groups of one side given, the other side is a problem of `clustering`: rows over groups of columns, or columns
over groups of rows. `cocluster` solves one after the other while blocks vanish, from rows first and from columns first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graphopt.solve import clustering

ROUNDS = 6
"""Times that both sides are clustered, at most."""

EFFORT, MOST_STARTS = 4_000, 24
"""Small problems are solved from several random orders too: `EFFORT` over their elements."""

Order = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Problem:
    """[rows, columns]: what is not zero, and the extents of a block. The last blocks may be smaller."""

    support: NDArray[np.bool_]
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Solution:
    """The orders of rows and columns, the blocks that hold something, and a bound on them."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    blocks: int
    bound: int

    @property
    def gap(self) -> float:
        """(blocks - bound) / blocks: 0 if no orders are better."""
        return (self.blocks - self.bound) / self.blocks if self.blocks else 0.0


def blocks_of(problem: Problem, rows: Order, columns: Order) -> int:
    """Blocks that hold something."""
    groups = _unions(problem.support[rows], problem.height)
    return int(_unions(groups[:, columns].T, problem.width).sum())


def bound(problem: Problem) -> int:
    """A lower bound on the blocks of any orders.

    A row of c elements has at least c / width blocks, which it shares with at most the other rows of its group; no
    choice of groups has smaller densest rows than that of neighbours by density. The same holds for columns.
    """
    wide = -(-np.sort(problem.support.sum(axis=1, dtype=np.int64))[::-1] // problem.width)
    tall = -(-np.sort(problem.support.sum(axis=0, dtype=np.int64))[::-1] // problem.height)
    return max(int(wide[:: problem.height].sum()), int(tall[:: problem.width].sum()))


def validate(problem: Problem, solution: Solution) -> list[str]:
    """Reasons why `solution` is wrong, independent of the solver."""
    for name, order, extent in zip(
        ("rows", "columns"), (solution.rows, solution.columns), problem.support.shape, strict=True
    ):
        if sorted(order) != list(range(extent)):
            return [f"the order of {len(order)} {name} is no permutation of {extent}"]
    held = problem.support[np.ix_(solution.rows, solution.columns)]
    places = {(row // problem.height, column // problem.width) for row, column in np.argwhere(held).tolist()}
    reasons = []
    if len(places) != solution.blocks:
        reasons.append(f"{len(places)} blocks hold something, the solution says {solution.blocks}")
    if solution.bound > len(places):
        reasons.append(f"the bound {solution.bound} is above the {len(places)} blocks")
    return reasons


def as_given(problem: Problem) -> Solution:
    """Rows and columns as they are."""
    rows, columns = (np.arange(extent) for extent in problem.support.shape)
    return _solution(problem, rows, columns)


def cocluster(problem: Problem) -> Solution:
    """The best orders found; never worse than those given."""
    best = as_given(problem)
    generator, (n, k) = np.random.default_rng(0), problem.support.shape
    starts = min(MOST_STARTS, EFFORT // (problem.support.size or 1))
    given: list[tuple[Order, Order]] = [(np.arange(n), np.arange(k))]
    given += [(generator.permutation(n), generator.permutation(k)) for _ in range(starts)]
    for number, (rows, columns) in enumerate(given):
        for rows_first in (True, False):
            if best.blocks == best.bound:
                return best
            # The first start knows no groups of the other side: its elements stand for themselves.
            found = _alternate(problem, rows, columns, rows_first=rows_first, alone=number == 0)
            best = min(best, found, key=lambda each: each.blocks)
    return best


def _alternate(problem: Problem, rows: Order, columns: Order, *, rows_first: bool, alone: bool) -> Solution:
    """Cluster both sides in turn until no blocks vanish."""
    best, idle, on_rows = _solution(problem, rows, columns), 0, rows_first
    for step in range(2 * ROUNDS):
        width, height = (1, 1) if alone and step == 0 else (problem.width, problem.height)
        if on_rows:
            held = _unions(problem.support[:, columns].T, width).T
            rows = rows[_cluster(held[rows], problem.height)]
        else:
            held = _unions(problem.support[rows], height)
            columns = columns[_cluster(held[:, columns].T, problem.width)]
        on_rows = not on_rows
        found = _solution(problem, rows, columns)
        idle = 0 if found.blocks < best.blocks else idle + 1
        best = min(best, found, key=lambda each: each.blocks)
        if idle == 2 or best.blocks == best.bound:
            break
    return best


def _cluster(supports: NDArray[np.bool_], height: int) -> Order:
    return np.array(clustering.cluster(clustering.Problem(supports, height)).order, np.int64)


def _solution(problem: Problem, rows: Order, columns: Order) -> Solution:
    blocks = blocks_of(problem, rows, columns)
    return Solution(tuple(rows.tolist()), tuple(columns.tolist()), blocks, bound(problem))


def _unions(rows: NDArray[np.bool_], height: int) -> NDArray[np.bool_]:
    """[groups, columns]: the columns that each `height` rows need."""
    if height == 1 or not len(rows):
        return rows
    return np.asarray(np.logical_or.reduceat(rows, np.arange(0, len(rows), height), axis=0))
