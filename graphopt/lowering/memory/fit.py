"""A compiled program in the order of least memory, and within a budget if there is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from graphopt.artifact import Artifact
from graphopt.lowering.memory.replan import Progress, StagePlan, replan
from graphopt.lowering.memory.undo import without_repetitions
from graphopt.program.program import NativeSegment

ESTIMATED = "estimated by the bytes that a call reads and writes"
MEASURED = "measured on this machine"

Seconds = Mapping[int, Sequence[float]] | None
"""By stage, the seconds of every call and other segment; None estimates them."""


def fit(
    artifact: Artifact, budget: int | None, threads: int | None, measured: bool, progress: Progress = lambda _: None
) -> tuple[Artifact, list[StagePlan]]:
    """The artifact planned anew: in another order where that saves memory, and then with repeated calls if it must.

    Args:
        budget: bytes that each rank may hold; None for no bound.
        threads: of each kernel, as they are measured.
        measured: time the kernels, if calls have to be repeated, instead of estimating them.

    Raises:
        BudgetError: no plan was found that fits; names the least budget found, and what dominates it.
    """
    ordered, plans = replan(artifact, progress=progress)
    if budget is None or all(plan.total <= budget for plan in plans):
        return ordered, plans
    seconds, _ = seconds_of(ordered, threads, measured, progress)
    return replan(ordered, budget, seconds, progress=progress)


def seconds_of(
    artifact: Artifact, threads: int | None, measured: bool, progress: Progress = lambda _: None
) -> tuple[Seconds, str]:
    """Seconds of the calls of every stage, and where they come from: kernels of a device are not measured."""
    segments = [segment for stage in artifact.program.stages for segment in stage.segments]
    launches = any(isinstance(each, NativeSegment) and any(call.launches for call in each.calls) for each in segments)
    if not measured or launches:
        return None, ESTIMATED
    from graphopt.runtime.measure import measure_calls

    stages = artifact.program.stages
    found = {
        stage.index: measure_calls(without_repetitions(stage), artifact, threads, progress=progress) for stage in stages
    }
    return found, MEASURED
