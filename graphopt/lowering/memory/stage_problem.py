"""A stage as a problem of `graphopt.solve.recompute`: steps are operations, values that own bytes are tensors.

Values outside of the arena that steps write (state) are tensors of no bytes: their readers come before their writer,
whose update must not run twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from graphopt.lowering.memory.steps import Access, Step, access_of, steps
from graphopt.program.program import ALIGNMENT, KernelCall, Place, Segment, Value
from graphopt.solve.recompute.problem import Operation, Problem


@dataclass(frozen=True, slots=True)
class StageProblem:
    """The problem; operation i is `steps[i]`, tensor t the value `tensors[t]`.

    `seconds` of an operation are estimates unless they were given.
    """

    problem: Problem
    steps: tuple[Step, ...]
    tensors: tuple[str, ...]


BANDWIDTH = 1e10
"""Bytes a second by which the seconds of a call are estimated when none are known."""


def stage_problem(
    segments: Sequence[Segment],
    values: Mapping[str, Value],
    inputs: Sequence[str],
    outputs: Sequence[str],
    seconds: Sequence[float] | None = None,
) -> StageProblem:
    """The problem of the stage with these parts.

    Args:
        seconds: of every step; by default every byte that a step reads or writes takes 1 / `BANDWIDTH`.
    """
    listed = tuple(steps(segments, values))
    scratch = _lone_scratch(listed)
    accesses = [(step.reads, (*step.writes, *_shared(step, scratch, values))) for step in listed]
    number: dict[str, int] = {}
    given: set[int] = set()
    for name in inputs:
        if (access := access_of(name, values)) is not None:
            given.add(number.setdefault(access.base, len(number)))
    for reads, writes in accesses:
        for access in reads:
            if access.base not in number and access.base not in {each.base for each in writes}:
                given.add(len(number))  # state, or bytes that no step writes before
            number.setdefault(access.base, len(number))
        for access in writes:
            number.setdefault(access.base, len(number))
    wanted = set()
    for name in outputs:
        if (access := access_of(name, values)) is not None:
            if access.base not in number:
                given.add(len(number))
            wanted.add(number.setdefault(access.base, len(number)))
    fixed = _fixed(listed, accesses, values)
    operations = []
    opened = set(given)
    for index, (step, (reads, writes)) in enumerate(zip(listed, accesses, strict=True)):
        outputs_of = tuple(dict.fromkeys(number[access.base] for access in writes))
        inputs_of = tuple(dict.fromkeys(number[access.base] for access in reads))
        opening = set(outputs_of) - opened  # reads of what nothing has written yet
        opened |= opening
        moved = sum(access.end - access.start for access in (*reads, *writes))
        operations.append(
            Operation(
                tuple(tensor for tensor in inputs_of if tensor not in opening),
                outputs_of,
                moved / BANDWIDTH if seconds is None else seconds[index],
                sum(_aligned(values[name].nbytes) for name in step.scratch if name in scratch),
                index not in fixed,
                tuple((number[old], number[new]) for old, new in in_place_pairs(step, values)),
            )
        )
    sizes = tuple(_aligned(values[name].nbytes) if values[name].place is Place.ARENA else 0 for name in number)
    problem = Problem(tuple(operations), sizes, frozenset(given), frozenset(wanted), tuple(_before(accesses)))
    return StageProblem(problem, listed, tuple(number))


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _lone_scratch(listed: Sequence[Step]) -> set[str]:
    """Scratch values that one step alone uses; others are tensors that several write."""
    users: dict[str, int] = {}
    for step in listed:
        for name in set(step.scratch):
            users[name] = users.get(name, 0) + 1
    return {name for name, count in users.items() if count == 1}


def _shared(step: Step, lone: set[str], values: Mapping[str, Value]) -> Iterator[Access]:
    for name in step.scratch:
        if name not in lone and (access := access_of(name, values)) is not None:
            yield access


_Accesses = Sequence[tuple[tuple[Access, ...], tuple[Access, ...]]]


def _fixed(listed: Sequence[Step], accesses: _Accesses, values: Mapping[str, Value]) -> set[int]:
    """Steps that run once: of other kinds than kernels, what makes their operands, and what cannot run twice.

    A kernel cannot if it writes over what it reads, over what another step wrote, or outside of the arena.
    """
    fixed = {index for index, step in enumerate(listed) if not step.free}
    named = {access.base for index in fixed for side in accesses[index] for access in side}
    written: dict[str, list[tuple[int, Access]]] = {}
    for index, (reads, writes) in enumerate(accesses):
        for access in writes:
            outside = values[access.base].place is not Place.ARENA
            if access.base in named or outside or any(access.overlaps(read) for read in reads):
                fixed.add(index)
            for earlier, other in written.setdefault(access.base, []):
                if access.overlaps(other):
                    fixed |= {index, earlier}
            written[access.base].append((index, access))
    return fixed


def _before(accesses: _Accesses) -> Iterator[tuple[int, int]]:
    """Pairs of a reader and a later step that writes over what it read."""
    readers: dict[str, list[tuple[int, Access]]] = {}
    for index, (reads, writes) in enumerate(accesses):
        for access in writes:
            for reader, read in readers.get(access.base, ()):
                if access.overlaps(read):
                    yield reader, index
        for access in reads:
            readers.setdefault(access.base, []).append((index, access))


def in_place_pairs(step: Step, values: Mapping[str, Value]) -> Iterator[tuple[str, str]]:
    """(input, output) of a call that may be the same bytes: whole values of the arena, of the same size.

    Every operand that shows the input must be one that the kernel may write over.
    """
    call = step.part
    if not isinstance(call, KernelCall) or step.guard:
        return
    for read, written in call.in_place:
        old, new = access_of(call.inputs[read], values), access_of(call.outputs[written], values)
        if old is None or new is None or old.base == new.base:
            continue
        whole = all(
            (each.start, each.end) == (0, values[each.base].nbytes) and values[each.base].place is Place.ARENA
            for each in (old, new)
        )
        accesses = [access_of(name, values) for name in call.inputs]
        places = [place for place, each in enumerate(accesses) if each is not None and each.base == old.base]
        allowed = all((place, written) in call.in_place for place in places)
        if whole and allowed and old.end == new.end:
            yield old.base, new.base
