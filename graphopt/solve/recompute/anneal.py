"""Improvement of a plan by small changes: simulated annealing over the decisions, the same on every machine."""

from __future__ import annotations

import math
import random

from graphopt.solve.recompute.expand import HOLD, KEEP, REDO
from graphopt.solve.recompute.plan import Evaluator, Plan

_SEED = 20231
_HOT, _COLD = 0.03, 0.0005
"""Temperatures at the beginning and the end, as shares of the seconds of the problem."""

IDLE = 20_000
"""Changes in a row without a better plan, after which the search ends."""


def improve(evaluator: Evaluator, plan: Plan, budget: int, work: int) -> Plan:
    """The best plan found by changing `plan` until `work` runs have been simulated.

    A change makes one decision otherwise. A plan above the budget is charged for its excess.
    """
    slots = changeable(evaluator)
    if not slots:
        return plan
    chance = random.Random(_SEED)
    scale = max(evaluator.problem.seconds, 1e-30)
    best = current = plan
    stop = evaluator.work + work
    begin = evaluator.work
    idle = 0
    while evaluator.work < stop and idle < IDLE:
        done = (evaluator.work - begin) / max(work, 1)
        heat = _HOT * (_COLD / _HOT) ** done
        trial = evaluator.plan(_changed(evaluator, current, slots, chance, budget))
        idle += 1
        if trial is None or trial is current:
            continue
        change = (cost(trial, budget, scale, done) - cost(current, budget, scale, done)) / heat
        if change <= 0 or chance.random() < math.exp(-change):
            current = trial
        if trial.better(best, budget):
            best, idle = trial, 0
    return best


def cost(plan: Plan, budget: int, scale: float, done: float) -> float:
    """What annealing minimises: seconds as a share of `scale`, and a charge for bytes above the budget.

    The charge rises with the share of the search that is `done`.
    """
    return plan.seconds / scale + (2.0 + 28.0 * done) * plan.excess(budget) / max(budget, 1)


def changeable(evaluator: Evaluator) -> list[int]:
    """Slots whose decision matters: the tensor has bytes, and can be made again."""
    expander, sizes = evaluator.expander, evaluator.problem.sizes
    return [
        slot
        for slot, tensor in enumerate(expander.tensor)
        if sizes[tensor]
        and (expander.droppable(slot) or (expander.end[slot] > expander.count and expander.until[tensor] >= 0))
    ]


def _changed(evaluator: Evaluator, plan: Plan, slots: list[int], chance: random.Random, budget: int) -> bytearray:
    """The decisions of `plan` with one or two of them made otherwise; often one that is live at the peak."""
    expander = evaluator.expander
    decisions = bytearray(plan.decisions)
    for _ in range(1 if chance.random() < 0.6 else 2):
        slot = chance.choice(slots)
        if plan.peak > budget:
            for _ in range(4):
                if expander.begin[slot] < plan.peak_place <= expander.end[slot]:
                    break
                slot = chance.choice(slots)
        decisions[slot] = chance.choice(
            [each for each in (KEEP, REDO, HOLD, chance.randrange(HOLD)) if each != decisions[slot]]
        )
    return decisions
