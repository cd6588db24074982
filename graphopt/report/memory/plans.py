"""What a budget of memory costs: repeated calls and their seconds, for every stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graphopt.lowering.memory.replan import StagePlan
from graphopt.report.document import Table
from graphopt.report.units import nbytes


def table(plans: Sequence[StagePlan], budget: int, seconds: str) -> Table:
    """One row for each stage."""
    rows = tuple(
        (
            str(plan.stage.index),
            nbytes(plan.total),
            nbytes(plan.stage.arena_bytes),
            str(len(plan.solution.sequence) - len(plan.staged.steps)),
            f"{plan.overhead:+.1%}",
            f"{plan.solution.gap:.1%}",
        )
        for plan in plans
    )
    columns = ("stage", "total", "arena", "repeated calls", "time", "gap")
    return Table(columns, rows, f"Within {nbytes(budget)}; seconds of calls are {seconds}", columns)


def document(plans: Sequence[StagePlan]) -> list[dict[str, Any]]:
    """The plans as JSON values."""
    return [
        {
            "stage": plan.stage.index,
            "total": plan.total,
            "arena": plan.stage.arena_bytes,
            "repeated_calls": len(plan.solution.sequence) - len(plan.staged.steps),
            "overhead": plan.overhead,
            "gap": plan.solution.gap,
            "method": plan.solution.method,
        }
        for plan in plans
    ]
