"""What is live at the peak of a sequence, by name."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphopt.lowering.memory.stage_problem import StageProblem
from graphopt.lowering.memory.steps import Step
from graphopt.program.program import KernelCall
from graphopt.solve.recompute.liveness import Simulator


def dominating(staged: StageProblem, sequence: Sequence[int]) -> tuple[str, list[tuple[str, int]]]:
    """Where the peak is, and the values and scratch that are live there, with their bytes, the largest first."""
    lifetimes = Simulator(staged.problem).run(sequence)
    step = int(lifetimes.live.argmax())
    alive = np.flatnonzero((lifetimes.first <= step) & (step <= lifetimes.last))
    reused = {int(old) for old, new in lifetimes.merged.tolist() if lifetimes.first[new] == step}
    makers: dict[int, str] = {}
    for each, operation in zip(staged.steps, staged.problem.operations, strict=True):
        for tensor in operation.outputs:
            makers.setdefault(tensor, f" of {describe(each)}")
    found = [
        (f"{staged.tensors[tensor]}{makers.get(tensor, '')}", staged.problem.sizes[tensor])
        for version in alive.tolist()
        if version not in reused and staged.problem.sizes[tensor := int(lifetimes.tensors[version])]
    ]
    if not 0 < step <= len(sequence):
        return ("at the inputs" if step == 0 else "at the outputs"), _largest(found)
    run = sequence[step - 1]
    if staged.problem.operations[run].scratch:
        found.append((f"scratch of {describe(staged.steps[run])}", staged.problem.operations[run].scratch))
    return f"at {describe(staged.steps[run])}", _largest(found)


def _largest(found: list[tuple[str, int]]) -> list[tuple[str, int]]:
    return sorted(found, key=lambda pair: (-pair[1], pair[0]))


def describe(step: Step) -> str:
    """The nodes of a step, or what kind of step it is."""
    part = step.part
    if isinstance(part, KernelCall):
        return ", ".join(part.origin[:2]) or part.symbol
    return getattr(part, "model", "") or "a choice"
