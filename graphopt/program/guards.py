"""Validation of the guards of a program's segments: each condition is one bool, computed before it is read."""

from __future__ import annotations

from collections.abc import Iterator

from graphopt.program.program import (
    MAX_VIEWS,
    FallbackSegment,
    Guard,
    NativeSegment,
    Place,
    Segment,
    SelectSegment,
    Stage,
    Value,
)


def guard_problems(stage: Stage, values: dict[str, Value]) -> Iterator[str]:
    """Every reason, as a sentence, why a guard or a select condition of `stage` cannot be evaluated."""
    computed: dict[str, Guard] = dict.fromkeys(stage.inputs, ())
    computed |= {value.name: () for value in stage.values if value.place is Place.WEIGHT}
    for segment in stage.segments:
        known: Guard = ()
        for name, wanted in segment.guard:
            yield from _condition_problems(name, known, computed, values)
            known = (*known, (name, wanted))
        if isinstance(segment, SelectSegment):
            yield from _condition_problems(segment.condition, known, computed, values)
        for name in written(segment):
            computed.setdefault(name, segment.guard)


def written(segment: Segment) -> Iterator[str]:
    """The values that `segment` writes, scratch included."""
    if isinstance(segment, NativeSegment):
        for call in segment.calls:
            yield from (*call.outputs, *call.scratch)
    else:
        yield from segment.outputs


def touched(segment: Segment) -> Iterator[tuple[str, ...]]:
    """The values that each step of `segment` reads and writes; the first step also reads the segment's guard."""
    guard = tuple(name for name, _ in segment.guard)
    if isinstance(segment, NativeSegment):
        for index, call in enumerate(segment.calls):
            yield (*(() if index else guard), *call.inputs, *call.outputs, *call.scratch)
    elif isinstance(segment, FallbackSegment):
        yield (*guard, *segment.inputs, *segment.outputs)
    else:
        yield (*guard, segment.condition, *segment.outputs, *segment.when_true, *segment.when_false)


def _condition_problems(name: str, known: Guard, computed: dict[str, Guard], values: dict[str, Value]) -> Iterator[str]:
    value = values.get(name)
    if value is None:
        yield f"a segment depends on the unknown value {name!r}"
    elif value.dtype != "bool" or value.nbytes != 1:
        yield f"a segment depends on {name!r}, which is not one bool"
    elif not any(set(computed[alias]) <= set(known) for alias in _chain(value, values) if alias in computed):
        yield f"a segment depends on {name!r}, which is not computed before"


def _chain(value: Value, values: dict[str, Value]) -> Iterator[str]:
    """The name of a value and of the values that it is a view of, up to MAX_VIEWS of them."""
    yield value.name
    for _ in range(MAX_VIEWS):
        following = values.get(value.of) if value.place is Place.VIEW else None
        if following is None:
            return
        value = following
        yield value.name
