"""Places in one arena for everything that is live while a sequence of steps runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from graphopt.lowering.memory.stage_problem import StageProblem
from graphopt.program.program import Place, Value
from graphopt.solve.memory import Buffer, MemoryProblem, solve
from graphopt.solve.recompute.liveness import Lifetimes, Simulator


@dataclass(frozen=True, slots=True)
class Arena:
    """Offsets of every version of a value, `offsets[name][k]` of the k-th, and of the scratch of every run.

    `nbytes` is the size of the arena, and no arena is smaller than `lower_bound`.
    """

    offsets: Mapping[str, Sequence[int]]
    scratch: Sequence[Mapping[str, int]]
    nbytes: int
    lower_bound: int


def place(staged: StageProblem, sequence: Sequence[int], values: Mapping[str, Value], effort: int = 3_000_000) -> Arena:
    """The arena of a sequence of the steps of `staged`; `effort` as in `graphopt.solve.memory.solve`."""
    lifetimes = Simulator(staged.problem).run(sequence)
    group = _groups(lifetimes)
    buffers: list[Buffer] = []
    index: dict[int, int] = {}
    for version, tensor in enumerate(lifetimes.tensors.tolist()):
        first, last = int(lifetimes.first[version]), int(lifetimes.last[version])
        owner = group[version]
        if owner not in index:
            index[owner] = len(buffers)
            buffers.append(Buffer(staged.problem.sizes[tensor], first, last))
        else:
            other = buffers[index[owner]]
            buffers[index[owner]] = Buffer(other.size, min(other.first, first), max(other.last, last))
    lone = {name for step in staged.steps for name in step.scratch} - set(staged.tensors)
    taken: list[dict[str, int]] = []
    for step, run in enumerate(sequence, 1):
        taken.append({})
        for name in staged.steps[run].scratch:
            if name in lone:
                taken[-1][name] = len(buffers)
                buffers.append(Buffer(values[name].nbytes, step, step))
    solution = solve(MemoryProblem(tuple(buffers)), effort)
    offsets: dict[str, list[int]] = {}
    for version, tensor in enumerate(lifetimes.tensors.tolist()):
        offsets.setdefault(staged.tensors[tensor], []).append(solution.offsets[index[group[version]]])
    scratch = [{name: solution.offsets[at] for name, at in each.items()} for each in taken]
    return Arena(offsets, scratch, solution.arena_bytes, solution.lower_bound)


def _groups(lifetimes: Lifetimes) -> list[int]:
    """For each version the first version that has the same bytes; outputs are written over inputs one after another."""
    into = dict(zip(lifetimes.merged[:, 1].tolist(), lifetimes.merged[:, 0].tolist(), strict=True))
    found = np.arange(len(lifetimes.tensors)).tolist()
    for version in range(len(found)):
        at = version
        while at in into:
            at = into[at]
        found[version] = at
    return found


def placed(staged: StageProblem, values: Mapping[str, Value]) -> tuple[dict[str, Value], Arena]:
    """The values of a stage whose steps run in their order, with their offsets, and its arena."""
    arena = place(staged, range(len(staged.steps)), values)
    offsets = {name: places[0] for name, places in arena.offsets.items() if values[name].place is Place.ARENA}
    for each in arena.scratch:
        offsets.update(each)
    return {name: replace(value, offset=offsets.get(name, value.offset)) for name, value in values.items()}, arena
