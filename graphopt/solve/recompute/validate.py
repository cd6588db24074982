"""An independent check of a solution: it follows the sequence step by step, and shares no code with the solvers."""

from __future__ import annotations

import math

from graphopt.solve.recompute.problem import Problem, Solution


def validate(problem: Problem, solution: Solution) -> list[str]:
    """Every reason why `solution` does not solve `problem`, as a sentence; empty if it does."""
    operations, sequence = problem.operations, solution.sequence
    if sorted(set(sequence)) != list(range(len(operations))):
        return ["an operation never runs, or there is one that the problem does not have"]
    reasons = []
    for index, operation in enumerate(operations):
        if sequence.count(index) > 1 and not operation.recomputable:
            reasons.append(f"operation {index} runs {sequence.count(index)} times and must run once")
    for first, second in problem.before:
        if max(i for i, run in enumerate(sequence) if run == first) > sequence.index(second):
            reasons.append(f"operation {first} runs after operation {second}, which must follow it")
    reasons += _reading(problem, sequence)
    if reasons:
        return reasons
    peak = _peak(problem, sequence)
    if peak != solution.peak:
        reasons.append(f"{peak} bytes are live at once, not {solution.peak}")
    if peak > problem.budget:
        reasons.append(f"{peak} bytes are live at once, more than the budget of {problem.budget}")
    seconds = math.fsum(operations[run].seconds for run in sequence)
    if not math.isclose(seconds, solution.seconds, rel_tol=1e-9, abs_tol=1e-15):
        reasons.append(f"the runs take {seconds:.9g} s, not {solution.seconds:.9g} s")
    if solution.bound > seconds * (1 + 1e-6):
        reasons.append(f"the bound {solution.bound:.9g} s is above the {seconds:.9g} s of the solution")
    return reasons


def _reading(problem: Problem, sequence: tuple[int, ...]) -> list[str]:
    """Reads of tensors whose newest version lacks a part that the reader needs."""
    needed: dict[int, dict[int, set[int]]] = {}  # reader -> tensor -> writers before it in the problem's order
    written: dict[int, set[int]] = {}
    for index, operation in enumerate(problem.operations):
        needed[index] = {tensor: set(written.get(tensor, ())) for tensor in operation.inputs}
        for tensor in operation.outputs:
            written.setdefault(tensor, set()).add(index)
    final = {tensor: written.get(tensor, set()) for tensor in problem.wanted}
    holds: dict[int, set[int]] = {}  # tensor -> writers that ran into its newest version
    reasons = []
    for place, run in enumerate(sequence):
        for tensor, wanted in needed[run].items():
            if not wanted <= holds.get(tensor, set()):
                reasons.append(f"run {place}, of operation {run}, reads a part of tensor {tensor} that is not there")
        operation = problem.operations[run]
        for tensor in operation.outputs:
            opening = run == min(written[tensor]) and tensor not in problem.given
            holds[tensor] = {run} if opening else holds.get(tensor, set()) | {run}
    reasons += [
        f"tensor {tensor} is not complete at the end"
        for tensor, wanted in final.items()
        if not wanted <= holds.get(tensor, set())
    ]
    return reasons


def _peak(problem: Problem, sequence: tuple[int, ...]) -> int:
    """The largest sum of live bytes, by looking from every access to the next one."""
    opener: dict[int, int] = {}
    for index, operation in enumerate(problem.operations):
        for tensor in operation.outputs:
            opener.setdefault(tensor, index)
    lives: list[list[int]] = []  # tensor, first step, last step
    newest: dict[int, list[int]] = {}
    for tensor in problem.given:
        newest[tensor] = [tensor, 0, 0]
        lives.append(newest[tensor])
    saved = [0] * (len(sequence) + 2)
    runs = []
    for step, run in enumerate(sequence, 1):
        operation = problem.operations[run]
        for tensor in operation.inputs:
            newest[tensor][2] = step
        read = {tensor: newest[tensor] for tensor in operation.inputs}
        for tensor in operation.outputs:
            if opener[tensor] == run and tensor not in problem.given:
                newest[tensor] = [tensor, step, step]
                lives.append(newest[tensor])
            newest[tensor][2] = step
        runs.append((step, operation, read, {tensor: newest[tensor] for tensor in operation.outputs}))
    for tensor in problem.wanted:
        newest[tensor][2] = len(sequence) + 1
    for step, operation, read, made in runs:
        taken: set[int] = set()
        for source, target in operation.in_place:
            if {-source - 1, target} & taken or source == target or source in problem.given:
                continue
            if problem.sizes[source] == problem.sizes[target] and read[source][2] == step == made[target][1]:
                taken |= {-source - 1, target}
                saved[step] += problem.sizes[target]
    live = [0] * (len(sequence) + 2)
    for tensor, first, last in lives:
        for step in range(first, last + 1):
            live[step] += problem.sizes[tensor]
    for step, run in enumerate(sequence, 1):
        live[step] += problem.operations[run].scratch
    return max(total - less for total, less in zip(live, saved, strict=True))
