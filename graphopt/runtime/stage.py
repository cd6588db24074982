"""One stage in this process: its arena, a view for every value, and the prepared calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from graphopt.errors import GraphoptError
from graphopt.program.check import located
from graphopt.program.contents import Contents
from graphopt.program.program import ALIGNMENT, NativeSegment, Place, SelectSegment, Stage
from graphopt.program.weights import Array, numpy_dtype
from graphopt.runtime.devices import library
from graphopt.runtime.in_place import InPlace

Bytes = npt.NDArray[np.uint8]

SELECT = "select"
"""The name of a choice between values, among kernels and models."""

_GUARD = 4096
"""Bytes behind every arena that no plan uses: a kernel that writes past the arena is seen there by `high_water`."""


@dataclass(frozen=True, slots=True)
class CallTime:
    """Seconds that one call took in one run; `origin` names the ONNX nodes it computes."""

    stage: int
    name: str
    origin: tuple[str, ...]
    seconds: float


class StageRunner:
    """Runs one stage, again and again, on the same memory.

    `bytes[name]` is the memory of every value that has any, `arrays[name]` the same in its dtype and shape, and
    `host[name]` the current object of a HOST value. Fill the inputs, `run()`, read the outputs; the next run overwrites
    them.
    """

    def __init__(self, stage: Stage, artifact: Contents, threads: int) -> None:
        """Allocate and bind.

        Raises:
            ArtifactError: a library, function, weight or model of the stage cannot be used.
        """
        self.stage = stage
        self.host: dict[str, Any] = {}
        self._memory = aligned(stage.arena_bytes + _GUARD)
        self._values = {value.name: value for value in stage.values}
        self.bytes = self._place(artifact)
        self.arrays: dict[str, Array] = {}
        for name, data in self.bytes.items():
            value = self._values[name]
            assert value.shape is not None
            self.arrays[name] = data.view(numpy_dtype(value.dtype)).reshape(value.shape)
        self._calls: list[tuple[Callable[..., Any], list[Any]]] = []
        self._names: list[tuple[str, tuple[str, ...]]] = []
        self._groups: list[tuple[list[tuple[memoryview, bool]], range]] = []
        self.in_place = InPlace(stage, self._values, self._bind(artifact, threads))

    def run(self) -> None:
        """Run all segments once, from the input views to the output views.

        Raises:
            GraphoptError: a kernel or a fallback model failed; names it.
        """
        index = 0
        try:
            for index in self._due():
                function, arguments = self._calls[index]
                function(*arguments)
        except GraphoptError:
            raise
        except Exception as error:
            name, origin = self._names[index]
            raise GraphoptError(
                f"kernel {name} of stage {self.stage.index} (nodes {', '.join(origin) or 'unknown'}) failed: "
                + " ".join(str(error).split())[:300]
            ) from error

    def profile(self) -> list[CallTime]:
        """Run once like `run`, taking the time of every call; one that is skipped takes none."""
        times = [CallTime(self.stage.index, name, origin, 0.0) for name, origin in self._names]
        for index in self._due():
            function, arguments = self._calls[index]
            start = time.perf_counter()
            function(*arguments)
            times[index] = replace(times[index], seconds=time.perf_counter() - start)
        return times

    def trace(self) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
        """Run once like `run`; after every call, the nodes it computes and copies of what it wrote, by value."""
        calls = [
            call
            for segment in self.stage.segments
            for call in (segment.calls if isinstance(segment, NativeSegment) else (segment,))
        ]
        for index in self._due():
            function, arguments = self._calls[index]
            function(*arguments)
            yield (
                self._names[index][1],
                {
                    name: self.arrays[name].copy() if name in self.arrays else self.host.get(name)
                    for name in calls[index].outputs
                },
            )

    def _due(self) -> Iterator[int]:
        """Places of the calls that this run makes: conditions are looked at when those before them are done."""
        for guard, calls in self._groups:
            if all(bool(flag[0]) is wanted for flag, wanted in guard):
                yield from calls

    def poison(self, pattern: int) -> None:
        """Set every byte of the arena, and of the guard behind it, to `pattern` (0 to 255)."""
        self._memory[:] = pattern

    def high_water(self, pattern: int) -> int:
        """One past the highest byte that no longer holds `pattern`; more than the arena's size if it overflowed."""
        touched = np.flatnonzero(self._memory != pattern)
        return int(touched[-1]) + 1 if touched.size else 0

    def _place(self, artifact: Contents) -> dict[str, Bytes]:
        """The bytes of every value that has any."""
        places: dict[str, Bytes] = {}
        weights, index = artifact.weights(self.stage.weights) if self.stage.weights else (memoryview(b""), {})
        constants = _writable(weights)
        for value in self.stage.values:
            found = located(value, self._values)
            if found is None or found[0].place is Place.HOST:
                continue
            base, inside = found
            if base.place is Place.ARENA:
                memory, start = self._memory, base.offset + inside
            else:
                memory, start = constants, index[base.name].start + inside
            places[value.name] = memory[start : start + value.nbytes]
        return places

    def _bind(self, artifact: Contents, threads: int) -> dict[str, list[tuple[list[Any], int]]]:
        """Prepare the calls; for every value, the lists of arguments that hold its tensor, and where."""
        function = library.load(artifact.library_file(self.stage.library)) if self.stage.library else None
        tensors: dict[str, Any] = {}
        places: dict[str, list[tuple[list[Any], int]]] = {}
        for segment in self.stage.segments:
            guard = [(self.bytes[name].data, wanted) for name, wanted in segment.guard]
            first = len(self._calls)
            count = len(segment.calls) if isinstance(segment, NativeSegment) else 1
            self._groups.append((guard, range(first, first + count)))
            if isinstance(segment, SelectSegment):
                self._calls.append((self._select(segment), []))
                self._names.append((SELECT, segment.origin))
                continue
            if not isinstance(segment, NativeSegment):
                from graphopt.runtime import fallback

                model, weights = artifact.files[segment.model], artifact.weight_arrays(self.stage, segment.weights)
                call = fallback.bind(segment, model, weights, self._values, self.arrays, self.host, threads)
                self._calls.append((call, []))
                self._names.append((segment.model, tuple(node for node, _ in segment.reasons)))
                continue
            for kernel in segment.calls:
                assert function is not None
                arguments: list[Any] = []
                for name in (*kernel.inputs, *kernel.outputs, *kernel.scratch):
                    if name not in tensors:
                        value = self._values[name]
                        assert value.shape is not None
                        tensors[name] = library.tensor(self.bytes[name], value.dtype, value.shape)
                    places.setdefault(name, []).append((arguments, len(arguments)))
                    arguments.append(tensors[name])
                self._calls.append((function(kernel.symbol), arguments))
                self._names.append((kernel.symbol, kernel.origin))
        return places

    def _select(self, segment: SelectSegment) -> Callable[[], None]:
        """Copies the values of the side that is chosen to the outputs, where they are not there already."""
        sides = []
        for names in (segment.when_false, segment.when_true):
            pairs = [(self.arrays[to], self.arrays[of]) for to, of in zip(segment.outputs, names, strict=True)]
            sides.append([(to, of) for to, of in pairs if to.ctypes.data != of.ctypes.data])
        flag, (when_false, when_true) = self.bytes[segment.condition].data, sides

        def select() -> None:
            for target, source in when_true if flag[0] else when_false:
                np.copyto(target, source)

        return select


def aligned(size: int) -> Bytes:
    """`size` uninitialised bytes at a multiple of 64."""
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size]


def _writable(data: memoryview) -> Bytes:
    """`data` as an array kernels accept: where it stands if it is mapped, else an aligned copy."""
    found = np.frombuffer(data, np.uint8)
    if found.flags.writeable and found.ctypes.data % ALIGNMENT == 0:
        return found
    copy = aligned(found.size)
    copy[:] = found
    return copy
