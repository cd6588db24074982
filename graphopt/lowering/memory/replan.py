"""A compiled program within a budget of memory: the same code, with calls in another order, some of them again.

The budget bounds what a rank holds: its arena after offsets are assigned, and its persistent bytes (weights and state).
A repeated call is the same kernel on the same inputs, so that the outputs keep their bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from graphopt.artifact import Artifact
from graphopt.errors import SolverError
from graphopt.lowering.memory.arena import place
from graphopt.lowering.memory.peak import dominating
from graphopt.lowering.memory.rewrite import with_sequence
from graphopt.lowering.memory.stage_problem import StageProblem, stage_problem
from graphopt.lowering.memory.steps import state_bytes
from graphopt.lowering.memory.undo import without_repetitions
from graphopt.program.contents import Contents
from graphopt.program.program import Stage
from graphopt.solve import ordering
from graphopt.solve.recompute import solver
from graphopt.solve.recompute.liveness import Simulator
from graphopt.solve.recompute.problem import Solution, reordered

_TRIES = 8
"""Budgets that are tried until the arena fits, each less by what the last one exceeded."""

Progress = Callable[[str], None]


class BudgetError(SolverError):
    """A budget that nothing found fits into; `least` bytes would be enough."""

    def __init__(self, message: str, least: int) -> None:
        """Args: message: one sentence."""
        super().__init__(message)
        self.least = least


@dataclass(frozen=True, slots=True)
class StagePlan:
    """A stage that was planned anew: `solution` is over the steps of `staged`, in its order.

    `persistent` bytes are weights and state; `once` are the seconds of every step once.
    """

    stage: Stage
    staged: StageProblem
    solution: Solution
    persistent: int
    once: float

    @property
    def total(self) -> int:
        """Bytes that the rank of this stage holds."""
        return self.persistent + self.stage.arena_bytes

    @property
    def overhead(self) -> float:
        """Seconds of repeated calls as a share of the seconds of every call once."""
        return self.solution.seconds / self.once - 1 if self.once else 0.0


def replan(
    artifact: Artifact,
    budget: int | None = None,
    seconds: Mapping[int, Sequence[float]] | None = None,
    *,
    effort: int = solver.EFFORT,
    progress: Progress = lambda _: None,
) -> tuple[Artifact, list[StagePlan]]:
    """The artifact with every stage planned anew, and the plans.

    Args:
        budget: bytes that each rank may hold; None changes the order alone, and repeats nothing.
        seconds: for each stage the seconds of every kernel call and other segment, in the order of the artifact and
            without its repetitions; estimated by the bytes that move where there are none.
        effort: of the search, as in `graphopt.solve.recompute.solver.solve`.

    Raises:
        BudgetError: no plan was found that fits; names the least budget found, and what dominates it.
    """
    plans = [
        plan_stage(stage, artifact, budget, (seconds or {}).get(stage.index), effort=effort, progress=progress)
        for stage in artifact.program.stages
    ]
    program = replace(artifact.program, stages=tuple(plan.stage for plan in plans))
    return artifact.with_program(program), plans


def persistent_bytes(stage: Stage, contents: Contents) -> int:
    """Bytes that a stage holds outside of its arena: tensors of its weights file, and state."""
    tensors = contents.weights(stage.weights)[1].values() if stage.weights else ()
    return sum(entry.nbytes for entry in tensors) + sum(state_bytes(stage.values).values())


def plan_stage(
    stage: Stage,
    contents: Contents,
    budget: int | None,
    seconds: Sequence[float] | None = None,
    *,
    effort: int = solver.EFFORT,
    progress: Progress = lambda _: None,
) -> StagePlan:
    """One stage planned anew; arguments and errors are those of `replan`."""
    persistent = persistent_bytes(stage, contents)
    plain = without_repetitions(stage)
    values = {value.name: value for value in plain.values}
    staged = _ordered(stage_problem(plain.segments, values, plain.inputs, plain.outputs, seconds))
    once = staged.problem.seconds
    every = tuple(range(len(staged.steps)))
    if budget is None:
        peak = Simulator(staged.problem).run(every).peak
        return StagePlan(
            with_sequence(plain, staged, every), staged, Solution(every, peak, once, once), persistent, once
        )
    room = budget - persistent
    allowed = room
    for _ in range(_TRIES):
        if allowed <= 0:
            break
        try:
            solution = solver.solve(replace(staged.problem, budget=allowed), effort, progress)
        except solver.InfeasibleError:
            break
        progress("assigning offsets")
        planned = with_sequence(plain, staged, solution.sequence)
        if planned.arena_bytes <= room:
            return StagePlan(planned, staged, solution, persistent, once)
        allowed -= planned.arena_bytes - room
    progress("looking for the least budget")
    solution = solver.least(staged.problem, effort // 4)
    planned = with_sequence(plain, staged, solution.sequence)
    if planned.arena_bytes <= room:  # so that the least budget, once named, is one that works
        return StagePlan(planned, staged, solution, persistent, once)
    raise _too_small(stage, staged, solution, persistent, budget, persistent + planned.arena_bytes)


def _ordered(staged: StageProblem) -> StageProblem:
    """The problem in an order of low peak; steps of other kinds than kernels stay where they are."""
    barriers = {index for index, step in enumerate(staged.steps) if not step.free}
    order = ordering.solve(staged.problem, barriers).operations
    return StageProblem(reordered(staged.problem, order), tuple(staged.steps[index] for index in order), staged.tensors)


def least_budget(stage: Stage, contents: Contents, effort: int = solver.EFFORT // 4) -> int:
    """The least bytes that a plan was found for, persistent ones included."""
    plain = without_repetitions(stage)
    values = {value.name: value for value in plain.values}
    staged = _ordered(stage_problem(plain.segments, values, plain.inputs, plain.outputs))
    solution = solver.least(staged.problem, effort)
    return persistent_bytes(stage, contents) + place(staged, solution.sequence, values).nbytes


def _too_small(
    stage: Stage, staged: StageProblem, solution: Solution, persistent: int, budget: int, least: int
) -> BudgetError:
    parts = [f"{persistent} bytes of weights and state"] if persistent else []
    where, live = dominating(staged, solution.sequence)
    parts += [f"{name} ({size} bytes)" for name, size in live[:3]]
    return BudgetError(
        f"a budget of {budget} bytes is too small for stage {stage.index}: the least found is {least} bytes, dominated "
        f"by {', '.join(parts)}, which live together {where}",
        least,
    )
