"""Inputs and outputs that kernels read and write in the caller's memory, without a copy from or to the arena.

The copy of a large input takes as long as a small network. Kernels accept any address of a numpy array, so a run
replaces the arena's memory by the caller's for every call that uses the value or a view of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt.program.program import FallbackSegment, Place, Segment, SelectSegment, Stage, Value
from graphopt.program.views import located
from graphopt.program.weights import Array, numpy_dtype
from graphopt.runtime.devices import library

LEAST_BYTES = 1 << 14
"""Bytes below which a copy costs no more than a new tensor."""


@dataclass(slots=True)
class _Part:
    """The value or a view of it: its start in the value, and the call arguments that refer to it."""

    value: Value
    start: int
    arguments: list[tuple[list[Any], int]]
    is_base: bool
    reshaped: tuple[int, ...] | None
    """Its shape, if that is its only difference from the value."""

    def of(self, array: Array) -> Array:
        """The part of `array` that this view shows."""
        if self.reshaped is not None:
            return array.reshape(self.reshaped)  # much faster than what follows
        data = array.reshape(-1).view(np.uint8)[self.start : self.start + self.value.nbytes]
        return data.view(numpy_dtype(self.value.dtype)).reshape(self.value.shape or ())


class InPlace:
    """The inputs and outputs of a stage that can be bound to memory outside the arena, and the current bindings."""

    def __init__(self, stage: Stage, values: Mapping[str, Value], arguments: Mapping[str, list[tuple[list[Any], int]]]):
        """Args: arguments: per value, the lists of prepared arguments with its tensor, and the position in each."""
        self._own: list[tuple[list[Any], int, Any]] = []
        self._parts: dict[str, list[_Part]] = {}
        candidates = _candidates(stage, values)
        for name, value in values.items():
            location = located(value, values)
            if location is not None and location[0].name in candidates:
                base, start = location
                same = value.nbytes == base.nbytes and value.dtype == base.dtype
                shape = value.shape if same else None
                part = _Part(value, start, arguments.get(name, []), name == base.name, shape)
                self._parts.setdefault(base.name, []).append(part)

    def takes(self, name: str) -> bool:
        """Whether `name` can be bound at all."""
        return name in self._parts

    def bind(self, name: str, array: Array) -> bool:
        """Let the next run read or write `name` in `array`, which has its dtype and shape; False if that is impossible.

        Memory that is not contiguous, read-only, or at an unaligned address cannot be used.
        """
        parts = self._parts.get(name)
        if parts is None or not array.flags.c_contiguous:
            return False
        for part in parts:
            if not part.arguments:
                continue
            try:
                tensor = library.shared(array if part.is_base else part.of(array))
            except (BufferError, RuntimeError, ValueError):
                return False
            for arguments, index in part.arguments:
                self._own.append((arguments, index, arguments[index]))
                arguments[index] = tensor
        return True

    def release(self) -> None:
        """Bind everything to the arena again; drops the references to the caller's memory."""
        for arguments, index, tensor in self._own:
            arguments[index] = tensor
        self._own.clear()


def _candidates(stage: Stage, values: Mapping[str, Value]) -> set[str]:
    """Inputs and outputs that are large, lie in the arena themselves, and are used by native calls only."""
    elsewhere = {_base(values, name) for segment in stage.segments for name in _copied(segment, values)}
    elsewhere |= {_base(values, name) for name in stage.outputs if values[name].place is not Place.ARENA}
    elsewhere |= {*stage.inputs} & {*stage.outputs}
    ports: Sequence[str] = (*stage.inputs, *stage.outputs)
    return {
        name
        for name in ports
        if values[name].place is Place.ARENA
        and values[name].nbytes >= LEAST_BYTES
        and values[name].dtype != "bfloat16"  # which numpy cannot share
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
    location = located(values[name], values)
    return name if location is None else location[0].name
