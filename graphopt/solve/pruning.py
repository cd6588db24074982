"""How sparse each layer should be: the fastest model that loses at most a budget.

    min  sum over layers of seconds[choice]     s.t.  sum over layers of loss[choice] <= budget

One option for each layer: a multiple-choice knapsack. The bound is the Lagrangian's, which equals that of the linear
relaxation (Sinha and Zoltners 1979, doi:10.1287/opre.27.3.503); a dynamic program over the choices that no other
dominates, without those that the bound excludes, finds the optimum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graphopt.errors import SolverError

MOST = 200_000
"""Partial choices that are followed at once; beyond it the least promising are dropped, and the gap is reported."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Option:
    """One way to prune a layer: its seconds, and what it loses, both from 0 on."""

    seconds: float
    loss: float


@dataclass(frozen=True, slots=True)
class Problem:
    """The options of each layer, at least one, and the largest sum of losses."""

    layers: tuple[tuple[Option, ...], ...]
    budget: float


@dataclass(frozen=True, slots=True)
class Solution:
    """The index of each layer's option, the sums of both, and a lower bound on the seconds of any choice."""

    chosen: tuple[int, ...]
    seconds: float
    loss: float
    bound: float

    @property
    def gap(self) -> float:
        """(seconds - bound) / seconds: 0 when the choice is proven optimal."""
        return max(0.0, (self.seconds - self.bound) / self.seconds) if self.seconds > 0 else 0.0


def validate(problem: Problem, solution: Solution) -> list[str]:
    """Reasons why `solution` is wrong, independent of the solver."""
    if len(solution.chosen) != len(problem.layers):
        return [f"{len(solution.chosen)} choices for {len(problem.layers)} layers"]
    taken = []
    for number, (options, index) in enumerate(zip(problem.layers, solution.chosen, strict=True)):
        if not 0 <= index < len(options):
            return [f"layer {number} has no option {index}"]
        taken.append(options[index])
    seconds, loss = math.fsum(each.seconds for each in taken), math.fsum(each.loss for each in taken)
    reasons = []
    if loss > problem.budget + _slack(problem.budget):
        reasons.append(f"the losses add up to {loss:.9g}, above the budget of {problem.budget:.9g}")
    if not math.isclose(seconds, solution.seconds, rel_tol=1e-9, abs_tol=1e-15):
        reasons.append(f"the choice takes {seconds:.9g} s, the solution says {solution.seconds:.9g} s")
    if not math.isclose(loss, solution.loss, rel_tol=1e-9, abs_tol=1e-15):
        reasons.append(f"the choice loses {loss:.9g}, the solution says {solution.loss:.9g}")
    if solution.bound > seconds * (1 + 1e-9):
        reasons.append(f"the bound {solution.bound:.9g} s is above the cost {seconds:.9g} s")
    return reasons


def solve(problem: Problem) -> Solution:
    """The fastest choice within the budget.

    Raises:
        SolverError: a number is out of range, a layer has no option, or every choice loses more than the budget.
    """
    _check(problem)
    seconds = [np.array([option.seconds for option in options]) for options in problem.layers]
    losses = [np.array([option.loss for option in options]) for options in problem.layers]
    price, bound = _price(seconds, losses, problem.budget)
    chosen = tuple(int(np.lexsort((s, x))[0]) for s, x in zip(seconds, losses, strict=True))  # the least losses
    for high in (price, price * (1 + 1e-9), price * 2):
        rounded = tuple(int(np.argmin(s + high * x)) for s, x in zip(seconds, losses, strict=True))
        if _sum(losses, rounded) <= problem.budget and _sum(seconds, rounded) < _sum(seconds, chosen):
            chosen = rounded
    found, exact = _search(seconds, losses, problem.budget, price, _sum(seconds, chosen))
    chosen = chosen if found is None else found
    total = _sum(seconds, chosen)
    return Solution(chosen, total, _sum(losses, chosen), total if exact else min(bound, total))


def _price(seconds: list[Floats], losses: list[Floats], budget: float) -> tuple[float, float]:
    """The price of a unit of loss that gives the best lower bound, and that bound."""

    def at(price: float) -> tuple[float, float]:
        """The bound, and what the choice that attains it loses."""
        picks = [int(np.argmin(s + price * x)) for s, x in zip(seconds, losses, strict=True)]
        lost = math.fsum(x[pick] for x, pick in zip(losses, picks, strict=True))
        spent = math.fsum(s[pick] for s, pick in zip(seconds, picks, strict=True))
        return spent + price * (lost - budget), lost

    best, lost = at(0.0)
    if lost <= budget:
        return 0.0, best
    low, high = 0.0, 1e-12
    while at(high)[1] > budget and high < 1e30:
        low, high = high, high * 8
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle)[1] > budget else (low, middle)
    return max((at(price)[0], price) for price in (low, high))[1], max(best, at(low)[0], at(high)[0])


def _search(
    seconds: list[Floats], losses: list[Floats], budget: float, price: float, known: float
) -> tuple[tuple[int, ...] | None, bool]:
    """A choice that is faster than `known`, None if there is none; and whether nothing was dropped on the way."""
    rest = [math.fsum(float((s + price * x).min()) for s, x in zip(seconds[k:], losses[k:], strict=True))
            for k in range(len(seconds) + 1)]  # fmt: skip
    limit = budget + _slack(budget)
    spent, lost, exact = np.zeros(1), np.zeros(1), True
    trail: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    for layer, (s, x) in enumerate(zip(seconds, losses, strict=True)):
        new_spent, new_lost = (spent[:, None] + s).ravel(), (lost[:, None] + x).ravel()
        least = new_spent + rest[layer + 1] - price * (budget - new_lost)
        keep = np.flatnonzero((new_lost <= limit) & (least < known * (1 + 1e-12)))
        order = keep[np.lexsort((new_spent[keep], new_lost[keep]))]
        fastest = np.minimum.accumulate(new_spent[order]) if len(order) else new_spent[order]
        useful = np.concatenate([[True], new_spent[order][1:] < fastest[:-1]]) if len(order) else np.zeros(0, bool)
        order = order[useful]
        if len(order) > MOST:
            order, exact = np.sort(order[np.argsort(least[order], kind="stable")[:MOST]]), False
        trail.append((order // len(s), order % len(s)))
        spent, lost = new_spent[order], new_lost[order]
        if not len(order):
            return None, exact
    state = int(np.argmin(spent))
    chosen = []
    for before, option in reversed(trail):
        chosen.append(int(option[state]))
        state = int(before[state])
    return tuple(reversed(chosen)), exact


def _sum(many: list[Floats], chosen: tuple[int, ...]) -> float:
    return math.fsum(float(each[index]) for each, index in zip(many, chosen, strict=True))


def _slack(budget: float) -> float:
    """Rounding that sums of losses may have."""
    return 1e-12 * max(1.0, budget)


def _check(problem: Problem) -> None:
    for number, options in enumerate(problem.layers):
        if not options:
            raise SolverError(f"layer {number} has no option: give at least the dense one")
        for option in options:
            if not (0 <= option.seconds < math.inf and 0 <= option.loss < math.inf):
                raise SolverError(f"layer {number} has the option {option}: seconds and losses are numbers from 0 on")
    least = math.fsum(min(option.loss for option in options) for options in problem.layers)
    if not least <= problem.budget + _slack(problem.budget):
        raise SolverError(f"every choice loses {least:.4g} or more, and the budget is {problem.budget:.4g}: allow more")
