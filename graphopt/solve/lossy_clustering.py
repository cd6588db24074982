"""Keep the fewest vectors of rows that hold a share of the energy, in the best order of the rows.

    min  |kept|     sum of energies[i, c] over kept (g, c), i in group g of the order  >=  keep * sum of energies

The energy of a weight is its square. `solve` alternates: it clusters the weights that still count, which gives groups;
keeps the vectors of a group and a column with most energy; then the weights outside of those count no more.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graphopt.solve import clustering

ROUNDS = 4
"""Alternations, at most; each begins with the order of the one before."""

SLACK = 1e-9
"""The share of the energy by which sums in another order may differ."""


@dataclass(frozen=True, slots=True)
class Problem:
    """energies [rows, columns], not negative and finite; rows of a group; the share of the energy to keep."""

    energies: NDArray[np.floating]
    height: int
    keep: float


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """The order of the rows; which vectors are kept [groups, columns]; the share of the energy in them; a bound."""

    order: tuple[int, ...]
    kept: NDArray[np.bool_]
    energy: float
    bound: int

    @property
    def vectors(self) -> int:
        """Vectors that are kept."""
        return int(self.kept.sum())

    @property
    def gap(self) -> float:
        """(vectors - bound) / vectors: 0 if nothing keeps as much with fewer vectors."""
        return (self.vectors - self.bound) / self.vectors if self.vectors else 0.0


def grouped(energies: NDArray[np.floating], order: NDArray[np.integer], height: int) -> NDArray[np.float64]:
    """The energy of each vector [groups, columns]."""
    return np.add.reduceat(energies[order], np.arange(0, len(order), height), axis=0, dtype=np.float64)


def bound(problem: Problem) -> int:
    """A lower bound on the vectors of any order.

    No grouping of a column holds more in its best t vectors than that of its rows sorted by energy does.
    """
    best = -np.sort(-problem.energies.astype(np.float64), axis=0)
    sums = np.add.reduceat(best, np.arange(0, len(best), problem.height), axis=0)
    return _fewest(sums, problem.keep - SLACK)[0]


def _fewest(energies: NDArray[np.float64], keep: float) -> tuple[int, NDArray[np.bool_]]:
    """How many of the largest energies make up the share `keep`, and which those are."""
    falling = np.argsort(-energies, axis=None, kind="stable")
    sums = np.cumsum(energies.ravel()[falling])
    count = 0 if not sums.size or sums[-1] == 0 else int(np.searchsorted(sums, keep * sums[-1])) + 1
    kept = np.zeros(energies.shape, np.bool_)
    kept.flat[falling[: min(count, int((energies > 0).sum()))]] = True
    return int(kept.sum()), kept


def solve(problem: Problem) -> Solution:
    """The best order and vectors found; never worse than the order given."""
    total = float(problem.energies.sum(dtype=np.float64))
    lowest = bound(problem)
    order = np.arange(len(problem.energies))
    best = _kept(problem, order, total, lowest)
    _, counting = _fewest(problem.energies.astype(np.float64), problem.keep)
    for _ in range(ROUNDS):
        found = clustering.cluster(clustering.Problem(counting[order], problem.height))
        order = order[np.array(found.order, np.int64)]
        solution = _kept(problem, order, total, lowest)
        if solution.vectors >= best.vectors:
            break
        best = solution
        counting = mask(problem, best)
    return best


def _kept(problem: Problem, order: NDArray[np.int64], total: float, lowest: int) -> Solution:
    energies = grouped(problem.energies, order, problem.height)
    _, kept = _fewest(energies, problem.keep)
    return Solution(tuple(order.tolist()), kept, float(energies[kept].sum()) / total if total else 1.0, lowest)


def mask(problem: Problem, solution: Solution) -> NDArray[np.bool_]:
    """Which weights, by row and column, are not zero and in a vector that is kept."""
    inside = np.empty(problem.energies.shape, np.bool_)
    inside[np.array(solution.order)] = np.repeat(solution.kept, problem.height, axis=0)[: len(inside)]
    return np.asarray(inside & (problem.energies > 0))


def validate(problem: Problem, solution: Solution) -> list[str]:
    """Reasons why `solution` is wrong, independent of the solver."""
    rows = len(problem.energies)
    if sorted(solution.order) != list(range(rows)):
        return [f"the order of {len(solution.order)} rows is no permutation of {rows}"]
    total, inside = 0.0, 0.0
    for place, row in enumerate(solution.order):
        energies = problem.energies[row].astype(np.float64)
        total += float(energies.sum())
        inside += float(energies[solution.kept[place // problem.height]].sum())
    reasons = []
    if inside < (problem.keep - SLACK) * total:
        reasons.append(f"the vectors hold {inside / total:.6f} of the energy, not {problem.keep:.6f}")
    if total and abs(inside / total - solution.energy) > SLACK:
        reasons.append(f"the vectors hold {inside / total:.6f} of the energy, the solution says {solution.energy:.6f}")
    if solution.bound > solution.vectors:
        reasons.append(f"the bound {solution.bound} is above the {solution.vectors} vectors")
    return reasons
