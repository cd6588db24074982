"""A stage whose steps run in another order, some of them again.

h = conv(x); ...; y = add(g, h)     ->     h = conv(x); ...; h~1 = conv(x)  (recompute_of h); y = add(g, h~1)
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

from graphopt.lowering.memory.arena import Arena, place
from graphopt.lowering.memory.stage_problem import StageProblem
from graphopt.lowering.memory.steps import access_of, used
from graphopt.program.program import Guard, KernelCall, NativeSegment, Place, Segment, Stage, Value


def with_sequence(stage: Stage, staged: StageProblem, sequence: Sequence[int], effort: int = 3_000_000) -> Stage:
    """The stage that runs `sequence` of the steps of `staged`, its arena planned anew.

    Args:
        effort: of the search for offsets, as in `graphopt.solve.memory.solve`.
    """
    values = {value.name: value for value in stage.values}
    arena = place(staged, sequence, values, effort)
    writer = _Writer(staged, sequence, values, arena)
    segments = tuple(_segments([writer.step(at, run) for at, run in enumerate(sequence)]))
    constants = [value.name for value in stage.values if value.place is Place.WEIGHT]
    kept = used(segments, writer.values, (*stage.inputs, *stage.outputs, *constants))
    return replace(
        stage,
        values=tuple(value for value in writer.values.values() if value.name in kept),
        segments=segments,
        arena_bytes=arena.nbytes,
        arena_lower_bound=arena.lower_bound,
    )


class _Writer:
    """Writes the steps of a sequence one after the other, and the values of the versions that they use."""

    def __init__(self, staged: StageProblem, sequence: Sequence[int], values: dict[str, Value], arena: Arena) -> None:
        self._staged, self._arena = staged, arena
        self._old = values
        self.values = dict(values)
        self._number = {name: tensor for tensor, name in enumerate(staged.tensors)}
        self._opener: dict[int, int] = {}
        for index, operation in enumerate(staged.problem.operations):
            for tensor in operation.outputs:
                if tensor not in staged.problem.given:
                    self._opener.setdefault(tensor, index)
        self._count = {name: len(places) for name, places in arena.offsets.items()}
        self._version = dict.fromkeys(range(len(staged.tensors)), -1)
        self._version |= dict.fromkeys(staged.problem.given, 0)
        self._names: dict[tuple[str, int], str] = {}
        self._first: dict[int, str] = {}
        for name, places in arena.offsets.items():
            if values[name].place is Place.ARENA:
                self.values[name] = replace(values[name], offset=places[self._own(name)])

    def _own(self, base: str) -> int:
        """The version that has the name of the value: the last one if it is an output of the stage, else the first."""
        return self._count[base] - 1 if self._number[base] in self._staged.problem.wanted else 0

    def step(self, at: int, run: int) -> tuple[int, Guard, Segment | KernelCall]:
        """Run `at` of the sequence, and the segment that it was in; -1 for a kernel under no condition."""
        step = self._staged.steps[run]
        part = step.part
        if not isinstance(part, KernelCall):
            self._advance(run)
            return step.segment, (), part
        inputs = tuple(map(self._named, part.inputs))
        self._advance(run)
        outputs = tuple(map(self._named, part.outputs))
        again = self._first.get(run, "")
        if not again and outputs:
            self._first[run] = outputs[0]
        scratch = tuple(self._scratch(name, at, bool(again)) for name in part.scratch)
        call = replace(part, inputs=inputs, outputs=outputs, scratch=scratch, recompute_of=again)
        return (step.segment if step.guard else -1), step.guard, call

    def _advance(self, run: int) -> None:
        for tensor in self._staged.problem.operations[run].outputs:
            if self._opener.get(tensor) == run:
                self._version[tensor] += 1

    def _named(self, name: str) -> str:
        """The name of the newest version of a value, or of a view of one."""
        access = access_of(name, self._old)
        if access is None:
            return name
        return self._at(name, access.base, max(self._version[self._number[access.base]], 0))

    def _at(self, name: str, base: str, version: int) -> str:
        if version == self._own(base):
            return name
        if (name, version) not in self._names:
            value = self._old[name]
            fresh = self._names[name, version] = self._fresh(name)
            if value.place is Place.VIEW:
                self.values[fresh] = replace(value, name=fresh, of=self._at(value.of, base, version))
            else:
                self.values[fresh] = replace(value, name=fresh, offset=self._arena.offsets[base][version])
        return self._names[name, version]

    def _scratch(self, name: str, at: int, again: bool) -> str:
        offset = self._arena.scratch[at].get(name)
        if offset is None:  # several steps share it
            return self._named(name)
        fresh = self._fresh(name) if again else name
        self.values[fresh] = replace(self._old[name], name=fresh, offset=offset)
        return fresh

    def _fresh(self, name: str) -> str:
        number = 1
        while f"{name}~{number}" in self.values:
            number += 1
        return f"{name}~{number}"


def _segments(parts: Sequence[tuple[int, Guard, Segment | KernelCall]]) -> Iterator[Segment]:
    """Kernel calls that follow each other in one segment: those under no condition, and those of one old segment."""
    for (_, guard), group in itertools.groupby(parts, key=lambda part: part[:2]):
        calls: list[KernelCall] = []
        for _, _, part in group:
            if isinstance(part, KernelCall):
                calls.append(part)
            else:
                yield part
        if calls:
            yield NativeSegment(tuple(calls), guard)
