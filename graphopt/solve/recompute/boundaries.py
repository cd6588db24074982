"""A linear program over a few places of the order: a bound on the seconds, and which tensors are kept across them.

Checkmate's program (`checkmate`) has a stage for every operation. Here windows between T chosen operations p_1 < ... <
p_T take their place. With keep[s, b]: tensor b is live while p_s runs, again[s, v]: v runs again between p_(s-1) and
p_s,

    min  sum seconds_v again[s, v]
    s.t. again[s, v] <= keep[s-1, b] + again[s, w]   for b written by w before the window and read by v
         1           <= keep[s-1, b] + again[s, w]   likewise, for every v that first runs in the window
         keep[s, b]  <= keep[s-1, b] + again[s, w]
         sum sizes_b keep[s, b] + scratch            <= budget at every p_s

Every sequence whose first runs are in the problem's order satisfies this, so that the optimum, also of the relaxation,
is a lower bound. What is live in the middle of a window counts only as far as it is live at both of its ends.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graphopt.solve.recompute.expand import HOLD, KEEP, REDO
from graphopt.solve.recompute.linear import Program
from graphopt.solve.recompute.plan import Evaluator, Plan
from graphopt.solve.recompute.problem import deadlines

_SMALL = 4000
"""Tensors below the budget divided by this count as nothing."""


@dataclass(frozen=True)
class Relaxed:
    """`keep[s, b]` between 0 and 1 at the operations `places`; `bound` are seconds of the whole sequence.

    `possible` is False if nothing fits into the budget in this order.
    """

    places: tuple[int, ...]
    keep: NDArray[np.float64] | None
    bound: float
    possible: bool = True


def choose(evaluator: Evaluator, count: int) -> tuple[int, ...]:
    """Up to `count` operations: where most is live without recomputation, in equal parts of the order."""
    total = evaluator.expander.count
    live = evaluator.simulator.run(range(total)).live[1:-1]
    edges = np.linspace(0, total, min(count, total) + 1).astype(int)
    pairs = zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    return tuple(low + int(live[low:high].argmax()) for low, high in pairs)


def solve(
    evaluator: Evaluator, budget: int, places: tuple[int, ...], *, whole: bool = False, seconds: float = 20.0
) -> Relaxed:
    """Solve the program, or with `whole` its integer form, within `seconds`."""
    model = _Model(evaluator, budget, places, whole)
    answer = model.program.solve(relaxed=not whole, seconds=seconds)
    if not answer.possible:
        return Relaxed(places, None, float("inf"), False)
    base = evaluator.problem.seconds
    bound = base + max(0.0, answer.bound) * model.unit
    if answer.values is None:
        return Relaxed(places, None, bound)
    keep = np.zeros((len(places), len(evaluator.problem.sizes)))
    for s, row in enumerate(model.keep):
        for tensor, variable in row.items():
            keep[s, tensor] = 1.0 if variable < 0 else answer.values[variable]
    return Relaxed(places, keep, bound)


class _Model:
    """The variables and rows."""

    def __init__(self, evaluator: Evaluator, budget: int, places: tuple[int, ...], whole: bool) -> None:
        self.program = Program()
        self.problem = problem = evaluator.problem
        self._expander = expander = evaluator.expander
        self._whole = whole
        self.unit = max(problem.seconds, 1e-30) / 1000
        self._large = [size * _SMALL > budget for size in problem.sizes]
        self._limits = deadlines(problem)
        self.keep: list[dict[int, int]] = []  # -1 stands for one that is live in any case
        previous: dict[int, int] = {tensor: -1 for tensor in problem.given if self._large[tensor]}
        before = -1
        for place in (*places, expander.count):
            again: dict[int, int] = {}
            now = self._live_at(place)
            self._window(before, place, previous, now, again)
            if place < expander.count:
                self._memory(place, now, budget)
                self.keep.append(now)
            previous, before = now, place

    def _live_at(self, place: int) -> dict[int, int]:
        """keep variables of the tensors written up to `place`; those that its operation touches are live."""
        expander = self._expander
        touched = set(expander.reads[place]) if place == expander.count else set(expander.uses[place])
        found = {}
        for tensor, makers in enumerate(expander.writers):
            exists = tensor in self.problem.given or (makers and makers[0] <= place)
            if exists and self._large[tensor]:
                found[tensor] = -1 if tensor in touched else self.program.variable(whole=self._whole)
        return found

    def _window(
        self, before: int, place: int, previous: dict[int, int], now: dict[int, int], again: dict[int, int]
    ) -> None:
        """Rows of the operations after `before` up to `place`."""
        expander, problem = self._expander, self.problem
        last = min(place, expander.count - 1)
        for v, operation in enumerate(problem.operations[: last + 1]):
            if operation.recomputable and place <= self._limits[v] and v <= before:
                again[v] = self.program.variable(operation.seconds / self.unit, whole=self._whole)
        for v in range(last + 1):
            if v in again or v > before:
                for tensor in expander.reads[v]:
                    self._available(tensor, again.get(v, -1), before, v, previous, again)
        for tensor, variable in now.items():
            if tensor in problem.given or expander.writers[tensor][0] <= before:
                self._available(tensor, variable, before, last + 1, previous, again)

    def _available(
        self, tensor: int, wanting: int, before: int, reader: int, previous: dict[int, int], again: dict[int, int]
    ) -> None:
        """`wanting` (-1: in any case) needs the parts of `tensor` that were written up to `before`."""
        if not self._large[tensor] or tensor not in previous or previous[tensor] < 0:
            return
        makers = [maker for maker in self._expander.writers[tensor] if maker <= before and maker < reader]
        if not makers and tensor not in self.problem.given:
            return
        needed = 1.0 if wanting < 0 else 0.0
        for maker in makers if tensor not in self.problem.given else [None]:
            terms = {previous[tensor]: 1.0}
            if maker in again:
                terms[again[maker]] = 1.0
            if wanting >= 0:
                terms[wanting] = terms.get(wanting, 0.0) - 1.0
            self.program.row(terms, low=needed)

    def _memory(self, place: int, now: dict[int, int], budget: int) -> None:
        problem = self.problem
        operation = problem.operations[place]
        fixed = operation.scratch + sum(problem.sizes[tensor] for tensor, variable in now.items() if variable < 0)
        fixed -= sum(problem.sizes[new] for new in {new for _, new in operation.in_place if self._large[new]})
        terms = {variable: problem.sizes[tensor] / budget for tensor, variable in now.items() if variable >= 0}
        self.program.row(terms, high=1.0 - fixed / budget)


def rounded(evaluator: Evaluator, relaxed: Relaxed, threshold: float) -> Plan | None:
    """The plan that keeps a tensor where the program keeps it by at least `threshold`."""
    if relaxed.keep is None:
        return None
    expander = evaluator.expander
    decisions = expander.nothing()
    places = np.array(relaxed.places)
    for slot, tensor in enumerate(expander.tensor):
        begin, end = expander.begin[slot], expander.end[slot]
        inside = np.flatnonzero((places > begin) & (places < end))
        extension = end > expander.count
        if not len(inside) or not (extension or expander.droppable(slot)):
            continue
        kept = relaxed.keep[inside, tensor] >= threshold
        if kept.all() and not extension:
            continue
        if extension:
            decisions[slot] = KEEP if kept[0] else HOLD if kept.any() else REDO
        else:
            decisions[slot] = HOLD if kept[-1] else REDO
    return evaluator.plan(decisions)
