"""What every step of a stage reads and writes, in bytes of the values that own them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from graphopt.program.guards import touched
from graphopt.program.program import Guard, KernelCall, NativeSegment, Place, Segment, SelectSegment, Value
from graphopt.program.views import located


@dataclass(frozen=True, slots=True)
class Access:
    """Bytes `start` to `end` of the value `base`, which is no view."""

    base: str
    start: int
    end: int

    def overlaps(self, other: Access) -> bool:
        """Whether both have a byte in common."""
        return self.base == other.base and self.start < other.end and other.start < self.end


@dataclass(frozen=True, slots=True)
class Step:
    """One kernel call, or one segment of another kind.

    `free` is whether the call may stand elsewhere and run again: it is a kernel under no condition.
    """

    segment: int
    part: KernelCall | Segment
    guard: Guard
    reads: tuple[Access, ...]
    writes: tuple[Access, ...]
    scratch: tuple[str, ...]
    free: bool


def steps(segments: Sequence[Segment], values: Mapping[str, Value]) -> Iterator[Step]:
    """The steps of `segments` in order. Constants and objects on the host have no accesses."""

    def of(names: Sequence[str]) -> tuple[Access, ...]:
        return tuple(access for name in names if (access := access_of(name, values)) is not None)

    for index, segment in enumerate(segments):
        guard = tuple(name for name, _ in segment.guard)
        if isinstance(segment, NativeSegment):
            for call in segment.calls:
                reads = of((*guard, *call.inputs))
                yield Step(index, call, segment.guard, reads, of(call.outputs), call.scratch, not segment.guard)
        elif isinstance(segment, SelectSegment):
            reads = of((*guard, segment.condition, *segment.when_true, *segment.when_false))
            yield Step(index, segment, segment.guard, reads, of(segment.outputs), (), False)
        else:
            reads = of((*guard, *segment.inputs))
            yield Step(index, segment, segment.guard, reads, of(segment.outputs), (), False)


def access_of(name: str, values: Mapping[str, Value]) -> Access | None:
    """The bytes of the value `name`; None for a constant, and for what has no fixed bytes."""
    location = located(values[name], values)
    if location is None or location[0].place in (Place.WEIGHT, Place.HOST):
        return None
    base, start = location
    return Access(base.name, start, start + values[name].nbytes)


NOT_STATE = frozenset((Place.ARENA, Place.VIEW, Place.HOST, Place.WEIGHT))
"""Places of values that are no memory of their own that steps write."""


def state_bytes(values: Iterable[Value]) -> dict[str, int]:
    """Bytes of the values that have memory of their own outside of the arena, and are no constants."""
    return {value.name: value.nbytes for value in values if value.place not in NOT_STATE}


def used(segments: Sequence[Segment], values: Mapping[str, Value], names: Iterable[str]) -> set[str]:
    """The values that `segments` touch, those of `names`, and what any of them is a view of."""
    found: set[str] = set()
    pending = [*names, *(name for segment in segments for step in touched(segment) for name in step)]
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            if name in values and values[name].place is Place.VIEW:
                pending.append(values[name].of)
    return found
