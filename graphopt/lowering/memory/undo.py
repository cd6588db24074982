"""A stage without repetitions: the calls that run again go, and who read their results reads the first ones.

h = conv(x); ...; h~1 = conv(x)  (recompute_of h); y = add(g, h~1)     ->     h = conv(x); ...; y = add(g, h)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from graphopt.lowering.memory.steps import access_of, used
from graphopt.program.program import KernelCall, NativeSegment, Place, Segment, Stage, Value


def without_repetitions(stage: Stage) -> Stage:
    """The stage before any call was repeated, in the same order; the offsets of its values mean nothing.

    A stage output that a repeated call writes is written by the first one again.
    """
    calls = [call for segment in stage.segments if isinstance(segment, NativeSegment) for call in segment.calls]
    if not any(call.recompute_of for call in calls):
        return stage
    values = {value.name: value for value in stage.values}
    makers = {call.outputs[0]: call for call in calls if call.outputs and not call.recompute_of}
    bases: dict[str, str] = {}  # a repeated value that owns bytes -> the first one
    for call in calls:
        first = makers.get(call.recompute_of)
        for again, once in zip(call.outputs, first.outputs if first else (), strict=False):
            new, old = access_of(again, values), access_of(once, values)
            if new is not None and old is not None and new.base != old.base:
                bases[new.base] = old.base
    outputs = {access.base for name in stage.outputs if (access := access_of(name, values)) is not None}
    bases = {new: old for new, old in bases.items() if new not in outputs} | {
        old: new for new, old in bases.items() if new in outputs
    }
    renamed = _Names(values, bases)
    segments = tuple(_segment(segment, renamed) for segment in stage.segments)
    segments = tuple(segment for segment in segments if not isinstance(segment, NativeSegment) or segment.calls)
    constants = [value.name for value in stage.values if value.place is Place.WEIGHT]
    kept = used(segments, renamed.values, (*stage.inputs, *stage.outputs, *constants))
    return replace(
        stage, values=tuple(value for value in renamed.values.values() if value.name in kept), segments=segments
    )


class _Names:
    """The first value for every repeated one, also for views of it."""

    def __init__(self, values: dict[str, Value], bases: dict[str, str]) -> None:
        self.values = dict(values)
        self._bases = bases
        self._views = {
            (value.of, value.offset, value.dtype, value.shape): value.name
            for value in values.values()
            if value.place is Place.VIEW
        }

    def of(self, name: str) -> str:
        """The name of the value that stands for `name`."""
        value = self.values[name]
        if value.place is not Place.VIEW:
            following = self._bases.get(name)
            return name if following is None else self.of(following)
        owner = self.of(value.of)
        if owner == value.of:
            return name
        found = self._views.get((owner, value.offset, value.dtype, value.shape))
        if found is None:  # only the repeated value was shown this way
            found = name
            self.values[name] = replace(value, of=owner)
        return found

    def all(self, names: Sequence[str]) -> tuple[str, ...]:
        """`of` for each."""
        return tuple(map(self.of, names))


def _segment(segment: Segment, names: _Names) -> Segment:
    if not isinstance(segment, NativeSegment):
        return segment  # what it reads and writes is never repeated
    return replace(segment, calls=tuple(_call(call, names) for call in segment.calls if not call.recompute_of))


def _call(call: KernelCall, names: _Names) -> KernelCall:
    return replace(call, inputs=names.all(call.inputs), outputs=names.all(call.outputs))
