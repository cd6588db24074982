"""Plans for budgets from what a program needs without repetitions down to the least that works."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from graphopt.artifact import Artifact
from graphopt.lowering.memory.replan import BudgetError, StagePlan, least_budget, plan_stage
from graphopt.solve.recompute import solver

POINTS = 8
"""Budgets that are tried between both ends, in equal ratios."""


def sweep(
    artifact: Artifact,
    seconds: Mapping[int, Sequence[float]] | None = None,
    *,
    points: int = POINTS,
    effort: int = solver.EFFORT // 12,
    progress: Callable[[str], None] = lambda _: None,
) -> Iterator[list[StagePlan]]:
    """The plans of every stage for falling budgets, from no repetition to the least budget found.

    Args:
        seconds: as in `graphopt.lowering.memory.replan.replan`.
    """
    stages = artifact.program.stages

    def planned(budget: int | None) -> list[StagePlan]:
        known = seconds or {}
        return [plan_stage(stage, artifact, budget, known.get(stage.index), effort=effort) for stage in stages]

    progress("planning without repetitions")
    first = planned(None)
    yield first
    most = max(plan.total for plan in first)
    progress("looking for the least budget")
    least = max(least_budget(stage, artifact, effort) for stage in stages)
    for point in range(1, points + 1 if least < most else 0):
        budget = round(most * (least / most) ** (point / points))
        progress(f"planning for {budget / most:.0%} of the bytes")
        try:
            yield planned(budget)
        except BudgetError:  # the search with seconds in mind did not come as low
            continue
