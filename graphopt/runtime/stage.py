"""One stage in this process: its arena, an array view of every value, and the prepared calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from graphopt.errors import GraphoptError
from graphopt.program.contents import Contents
from graphopt.program.program import ALIGNMENT, NativeSegment, Place, SelectSegment, Stage
from graphopt.program.views import located
from graphopt.program.weights import Array, numpy_dtype
from graphopt.runtime.devices import library
from graphopt.runtime.in_place import InPlace

Bytes = npt.NDArray[np.uint8]

SELECT = "select"
"""Name of a select segment, among the names of kernels and models."""

_GUARD = 4096
"""Guard bytes behind every arena that no plan uses: `high_water` detects kernels that write past the arena."""


@dataclass(frozen=True, slots=True)
class CallTime:
    """Seconds that one call took in one run; `origin` names the ONNX nodes it computes."""

    stage: int
    name: str
    origin: tuple[str, ...]
    seconds: float


class StageRunner:
    """Runs one stage, repeatedly, on the same memory.

    `bytes[name]` is the memory of every value that has any, `arrays[name]` the same in its dtype and shape, and
    `host[name]` the current object of a HOST value. Fill the inputs, `run()`, read the outputs; the next run overwrites
    them.
    """

    def __init__(self, stage: Stage, artifact: Contents, threads: int) -> None:
        """Allocate the arena and bind the calls.

        Raises:
            ArtifactError: a library, function, weight or model of the stage cannot be used.
        """
        self.stage = stage
        self.host: dict[str, Any] = {}
        self._memory = aligned(stage.arena_bytes + _GUARD)
        self._state = aligned(stage.state_bytes)
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
        self.load_state(artifact.state_arrays(stage))
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
        """Run once like `run` and time every call; a skipped call takes 0 seconds."""
        times = [CallTime(self.stage.index, name, origin, 0.0) for name, origin in self._names]
        for index in self._due():
            function, arguments = self._calls[index]
            start = time.perf_counter()
            function(*arguments)
            times[index] = replace(times[index], seconds=time.perf_counter() - start)
        return times

    def trace(self) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
        """Run once like `run`; yields after every call the nodes it computes and copies of the values it wrote."""
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
        """Indices of the calls that this run executes: guards are evaluated after the calls before them."""
        for guard, calls in self._groups:
            if all(bool(flag[0]) is wanted for flag, wanted in guard):
                yield from calls

    def state(self) -> dict[str, Array]:
        """Copies of the state values."""
        return {state.value: self.arrays[state.value].copy() for state in self.stage.states}

    def load_state(self, arrays: Mapping[str, Array]) -> None:
        """Set state values, each of its dtype and shape."""
        for name, array in arrays.items():
            np.copyto(self.arrays[name], array, casting="no")

    def poison(self, pattern: int) -> None:
        """Set every byte of the arena, and of the guard behind it, to `pattern` (0 to 255)."""
        self._memory[:] = pattern

    def high_water(self, pattern: int) -> int:
        """One past the highest byte that differs from `pattern`; more than the arena's size if a kernel overran it."""
        touched = np.flatnonzero(self._memory != pattern)
        return int(touched[-1]) + 1 if touched.size else 0

    def _place(self, artifact: Contents) -> dict[str, Bytes]:
        """The memory of every value that has any."""
        places: dict[str, Bytes] = {}
        weights, index = artifact.weights(self.stage.weights) if self.stage.weights else (memoryview(b""), {})
        constants = _writable(weights)
        for value in self.stage.values:
            location = located(value, self._values)
            if location is None or location[0].place is Place.HOST:
                continue
            base, inside = location
            if base.place is Place.ARENA:
                memory, start = self._memory, base.offset + inside
            elif base.place is Place.STATE:
                memory, start = self._state, base.offset + inside
            else:
                memory, start = constants, index[base.name].start + inside
            places[value.name] = memory[start : start + value.nbytes]
        return places

    def _bind(self, artifact: Contents, threads: int) -> dict[str, list[tuple[list[Any], int]]]:
        """Prepare the calls; returns per value the lists of arguments with its tensor, and the position in each."""
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
        """A function that copies the selected side's values to the outputs, except those that share their memory."""
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
    """`data` as an array that kernels accept: in place if it is mapped, else an aligned copy."""
    array = np.frombuffer(data, np.uint8)
    if array.flags.writeable and array.ctypes.data % ALIGNMENT == 0:
        return array
    copy = aligned(array.size)
    copy[:] = array
    return copy
