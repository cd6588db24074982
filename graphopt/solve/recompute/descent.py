"""Improvement of a plan that fits: tensors are kept again, the dearest to make first, as far as the budget has room.

Where no single tensor can be kept any more, a few cheap ones are made again, and the room is used for dearer ones.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from graphopt.solve.recompute.anneal import changeable
from graphopt.solve.recompute.expand import HOLD, KEEP, REDO
from graphopt.solve.recompute.plan import Evaluator, Plan

_SEED = 20234
_TRIED = 12
"""Dear tensors that are tried after a few cheap ones made room."""

_IDLE = 600
"""Exchanges in a row without a better plan, after which the search ends."""


def improve(evaluator: Evaluator, plan: Plan, budget: int, work: int) -> Plan:
    """The fastest plan found within `budget` until `work` runs have been simulated; `plan` if that does not fit."""
    slots = changeable(evaluator)
    if plan.peak > budget or not slots or not plan.decisions:
        return plan
    search = _Search(evaluator, budget, evaluator.work + work)
    best = search.kept_again(plan, sorted(slots, key=lambda slot: -search.dear[slot]))
    chance = random.Random(_SEED)
    weights = [evaluator.problem.sizes[evaluator.expander.tensor[slot]] / (search.dear[slot] + 1e-9) for slot in slots]
    dearness = [search.dear[slot] + 1e-12 for slot in slots]
    idle = 0
    while evaluator.work < search.stop and idle < _IDLE:
        decisions = bytearray(best.decisions)
        for slot in chance.choices(slots, weights, k=chance.choice((1, 1, 2, 3))):
            decisions[slot] = HOLD if decisions[slot] == KEEP else KEEP
        trial = evaluator.plan(decisions)
        idle += 1
        if trial is None or trial.peak > budget + budget // 20:
            continue
        found = search.kept_again(trial, chance.choices(slots, dearness, k=_TRIED))
        if found.better(best, budget):
            best, idle = found, 0
    return best


class _Search:
    """Keeps tensors again while the plan fits."""

    def __init__(self, evaluator: Evaluator, budget: int, stop: int) -> None:
        self._evaluator, self._budget, self.stop = evaluator, budget, stop
        expander, operations = evaluator.expander, evaluator.problem.operations
        seconds = [sum(operations[maker].seconds for maker in makers) for makers in expander.writers]
        self.dear = [seconds[tensor] for tensor in expander.tensor]

    def kept_again(self, plan: Plan, slots: Iterable[int]) -> Plan:
        """`plan` with each of `slots` kept, or held instead of made again for every use, where that is better."""
        for slot in slots:
            for decision in (KEEP, HOLD):
                now = plan.decisions[slot]
                if now == KEEP or (decision == HOLD and now != REDO) or self._evaluator.work >= self.stop:
                    continue
                changed = bytearray(plan.decisions)
                changed[slot] = decision
                trial = self._evaluator.plan(changed)
                if trial is not None and trial.better(plan, self._budget):
                    plan = trial
        return plan
