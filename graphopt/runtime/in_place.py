"""Inputs and outputs that kernels read and write where the caller has them, without a copy from or to the arena.

A large input costs its copy as often as a small network runs. Kernels take any address that numpy gives an array, so a
run puts the caller's memory in the place of the arena's for every call that touches the value or a view of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt.program.check import located
from graphopt.program.program import FallbackSegment, Place, Segment, SelectSegment, Stage, Value
from graphopt.program.weights import Array, numpy_dtype
from graphopt.runtime.devices import library

LEAST_BYTES = 1 << 14
"""A smaller copy costs no more than a new tensor."""


@dataclass(slots=True)
class _Part:
    """The value or a view of it: its place in the value, and the arguments of calls that are it."""

    value: Value
    start: int
    arguments: list[tuple[list[Any], int]]
    whole: bool
    reshaped: tuple[int, ...] | None
    """Its shape, if it differs from the value in that only."""

    def of(self, array: Array) -> Array:
        """What this part is of the bytes of `array`."""
        if self.reshaped is not None:
            return array.reshape(self.reshaped)  # in a fraction of the time of what follows
        data = array.reshape(-1).view(np.uint8)[self.start : self.start + self.value.nbytes]
        return data.view(numpy_dtype(self.value.dtype)).reshape(self.value.shape or ())


class InPlace:
    """What of a stage can be bound to memory outside the arena, and what is."""

    def __init__(self, stage: Stage, values: Mapping[str, Value], arguments: Mapping[str, list[tuple[list[Any], int]]]):
        """Args: arguments: of every value, the lists of prepared arguments that hold its tensor, and where."""
        self._own: list[tuple[list[Any], int, Any]] = []
        self._parts: dict[str, list[_Part]] = {}
        candidates = _candidates(stage, values)
        for name, value in values.items():
            found = located(value, values)
            if found is not None and found[0].name in candidates:
                base, start = found
                same = value.nbytes == base.nbytes and value.dtype == base.dtype
                shape = value.shape if same else None
                part = _Part(value, start, arguments.get(name, []), name == base.name, shape)
                self._parts.setdefault(base.name, []).append(part)

    def takes(self, name: str) -> bool:
        """Whether `name` can be bound at all."""
        return name in self._parts

    def bind(self, name: str, array: Array) -> bool:
        """Let the next run read or write `name` in `array`, which has its dtype and shape, if its memory can be used.

        It cannot where it is not contiguous, read-only, or at an odd address.
        """
        parts = self._parts.get(name)
        if parts is None or not array.flags.c_contiguous:
            return False
        for part in parts:
            if not part.arguments:
                continue
            try:
                tensor = library.shared(array if part.whole else part.of(array))
            except (BufferError, RuntimeError, ValueError):
                return False
            for arguments, index in part.arguments:
                self._own.append((arguments, index, arguments[index]))
                arguments[index] = tensor
        return True

    def release(self) -> None:
        """Back to the arena; the caller's memory is no longer referred to."""
        for arguments, index, tensor in self._own:
            arguments[index] = tensor
        self._own.clear()


def _candidates(stage: Stage, values: Mapping[str, Value]) -> set[str]:
    """Inputs and outputs that are large, are in the arena themselves, and that native calls alone touch."""
    elsewhere = {_base(values, name) for segment in stage.segments for name in _copied(segment, values)}
    elsewhere |= {_base(values, name) for name in stage.outputs if values[name].place is not Place.ARENA}
    elsewhere |= {*stage.inputs} & {*stage.outputs}
    ports: Sequence[str] = (*stage.inputs, *stage.outputs)
    return {
        name
        for name in ports
        if values[name].place is Place.ARENA
        and values[name].nbytes >= LEAST_BYTES
        and values[name].dtype != "bfloat16"  # which numpy does not share
        and name not in elsewhere
    }


def _copied(segment: Segment, values: Mapping[str, Value]) -> Iterator[str]:
    """The values that `segment` reads or writes otherwise than by kernels."""
    if isinstance(segment, FallbackSegment):
        yield from (*segment.inputs, *segment.outputs)
    elif isinstance(segment, SelectSegment):
        for sides in (segment.when_true, segment.when_false):
            for output, side in zip(segment.outputs, sides, strict=True):
                if _base(values, output) != _base(values, side):
                    yield from (output, side)


def _base(values: Mapping[str, Value], name: str) -> str:
    found = located(values[name], values)
    return name if found is None else found[0].name
