"""One stage on a GPU: its arena and weights on the device, and the steps that a run enqueues, in order.

    upload inputs, launch kernels, download what a fallback model reads and upload what it writes, download outputs

Without fallback models all of this is recorded once and enqueued by one call.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from graphopt.errors import ArtifactError
from graphopt.program.contents import Contents
from graphopt.program.program import FallbackSegment, KernelCall, NativeSegment, Place, SelectSegment, Stage
from graphopt.program.views import located
from graphopt.program.weights import Array, numpy_dtype
from graphopt.runtime.devices.device import Device
from graphopt.runtime.stage import CallTime

_GUARD = 4096
"""Guard bytes behind the arena, as on the host: no plan uses them."""

Step = Callable[[], None]


class DeviceStageRunner:
    """Runs one stage on a device, repeatedly, on the same memory; the counterpart of `StageRunner` on a CPU.

    `arrays[name]` is host memory of inputs, outputs and values of fallback models; `bytes[name]` the same memory
    without a dtype. `given[name]` is the device address of an input that is read there instead.
    """

    def __init__(self, stage: Stage, artifact: Contents, device: Device, threads: int) -> None:
        """Allocate memory, upload the weights and bind the kernels.

        Raises:
            ArtifactError: a kernel, weight or model of the stage cannot be used.
            GraphoptError: the device has not enough memory.
        """
        self.stage = stage
        self.host: dict[str, Any] = {}
        self.given: dict[str, int] = {}
        self._device = device
        self._values = {value.name: value for value in stage.values}
        self._arena = device.allocate(stage.arena_bytes + _GUARD)
        self._state = device.allocate(stage.state_bytes) if stage.states else 0
        self._pointers = self._place(artifact)
        self.arrays = {name: self._host_array(name) for name in self._shared() if name in self._pointers}
        self.bytes = {name: _flat(array) for name, array in self.arrays.items()}
        self._groups: list[tuple[str, tuple[str, ...], list[Step]]] = []
        self.load_state(artifact.state_arrays(stage))
        self._bind(artifact, threads)
        device.synchronize()
        self._alone = not any(isinstance(segment, FallbackSegment) for segment in stage.segments)
        self._whole = device.record(self._steps(*self._groups)) if self._alone else None

    @property
    def nbytes(self) -> int:
        """Bytes of the arena, the state and the weights."""
        return self.stage.arena_bytes + self.stage.state_bytes + self._weight_bytes

    @functools.cached_property
    def _inner(self) -> Step:
        """Everything between the copies of inputs and those of outputs, as one step."""
        return self._one_step(self._steps(*self._groups[1:-1]))

    def run(self, download: bool = True) -> None:
        """Run all segments once, from the input arrays to the output arrays.

        Args:
            download: whether outputs are copied to `arrays` and waited for.

        Raises:
            GraphoptError: the device or a fallback model failed.
        """
        self._device.activate()
        if self._whole is not None and download and not self.given:
            self._whole()
        else:
            self._bring()
            self._inner()
            if download:
                _all(self._groups[-1][2])
        if download:
            self._device.synchronize()

    def replay(self) -> Step:
        """A step that enqueues everything between the copies of inputs and of outputs, on the current inputs.

        An input whose place in the arena is reused later is kept elsewhere on the device, and copied from there each
        time.
        """
        self._device.activate()
        steps: list[Step] = []
        for name in self.stage.inputs:
            if name in self.arrays:
                kept = self._device.allocate(self._values[name].nbytes) if self._taken(name) else self._pointers[name]
                self._device.upload(kept, self.bytes[name])
                if kept != self._pointers[name]:
                    steps.append(self._copy(name, kept))
        self._device.synchronize()
        return self._one_step([*steps, *self._steps(*self._groups[1:-1])])

    def shared(self, name: str) -> int:
        """The address of a value on the device."""
        return self._pointers[name]

    def profile(self) -> list[CallTime]:
        """Run once like `run`, with the device's time of every call (a fallback model's by the host's clock)."""
        self._device.activate()
        self._bring()
        times: list[CallTime] = []
        waiting: list[tuple[str, tuple[str, ...], list[Step]]] = []

        def flush() -> None:
            seconds = self._device.laps([functools.partial(_all, steps) for _, _, steps in waiting])
            for (name, origin, _), elapsed in zip(waiting, seconds, strict=True):
                times.append(CallTime(self.stage.index, name, origin, elapsed))
            waiting.clear()

        for name, origin, steps in self._groups[1:-1]:
            if not name.endswith(".onnx"):
                waiting.append((name, origin, steps))
                continue
            flush()
            start = time.perf_counter()
            _all(steps)
            self._device.synchronize()
            times.append(CallTime(self.stage.index, name, origin, time.perf_counter() - start))
        flush()
        _all(self._groups[-1][2])
        self._device.synchronize()
        return times

    def _bring(self) -> None:
        """Enqueue the copies of the inputs to the addresses that the program reads."""
        for name in self.stage.inputs:
            if name in self.arrays:
                step = self._copy(name, self.given[name]) if name in self.given else self._up(name)
                step()

    def _one_step(self, steps: list[Step]) -> Step:
        return self._device.record(steps) if self._alone else functools.partial(_all, steps)

    def _taken(self, name: str) -> bool:
        """Whether the place of the input in the arena is also used by another value, earlier or later."""
        location = located(self._values[name], self._values)
        assert location is not None
        first = self._pointers[name]
        for value in self.stage.values:
            owner = located(value, self._values)
            if value.name not in self._pointers or owner is None or owner[0] is location[0]:
                continue
            start = self._pointers[value.name]
            if start < first + self._values[name].nbytes and first < start + value.nbytes:
                return True
        return False

    def state(self) -> dict[str, Array]:
        """Copies of the state values, on the host."""
        self._device.activate()
        arrays = {state.value: self._empty(state.value) for state in self.stage.states}
        for name, array in arrays.items():
            self._device.download(_flat(array), self._pointers[name])
        self._device.synchronize()
        return arrays

    def load_state(self, arrays: Mapping[str, Array]) -> None:
        """Set state values, each of its dtype and shape."""
        self._device.activate()
        for name, array in arrays.items():
            self._device.upload(self._pointers[name], _flat(np.ascontiguousarray(array)))
        self._device.synchronize()

    def _empty(self, name: str) -> Array:
        value = self._values[name]
        assert value.shape is not None
        return np.empty(value.shape, numpy_dtype(value.dtype))

    @staticmethod
    def _steps(*groups: tuple[str, tuple[str, ...], list[Step]]) -> list[Step]:
        return [step for _, _, steps in groups for step in steps]

    def poison(self, pattern: int) -> None:
        """Set every byte of the arena, and of the guard behind it, to `pattern` (0 to 255)."""
        self._device.activate()
        self._device.fill(self._arena, pattern, self.stage.arena_bytes + _GUARD)
        self._device.synchronize()

    def high_water(self, pattern: int) -> int:
        """One past the highest byte that differs from `pattern`; more than the arena's size if a kernel overran it."""
        self._device.activate()
        memory = np.empty(self.stage.arena_bytes + _GUARD, np.uint8)
        self._device.download(memory, self._arena)
        self._device.synchronize()
        touched = np.flatnonzero(memory != pattern)
        return int(touched[-1]) + 1 if touched.size else 0

    def _place(self, artifact: Contents) -> dict[str, int]:
        """The device address of every value that has bytes; uploads the weights."""
        weights, index = artifact.weights(self.stage.weights) if self.stage.weights else (memoryview(b""), {})
        self._weight_bytes = len(weights)
        base = self._device.allocate(len(weights))
        self._device.upload(base, np.frombuffer(weights, np.uint8))
        pointers = {}
        for value in self.stage.values:
            location = located(value, self._values)
            if location is None or location[0].place is Place.HOST:
                continue
            owner, inside = location
            if owner.place is Place.WEIGHT:
                start = base + index[owner.name].start
            else:
                start = (self._state if owner.place is Place.STATE else self._arena) + owner.offset
            pointers[value.name] = start + inside
        self._device.synchronize()  # the weights are mapped from a file that may be unmapped
        return pointers

    def _shared(self) -> Iterable[str]:
        """Values that the host reads or writes."""
        names = dict.fromkeys((*self.stage.inputs, *self.stage.outputs))
        for segment in self.stage.segments:
            if isinstance(segment, FallbackSegment):
                names.update(dict.fromkeys((*segment.inputs, *segment.outputs)))
        return names

    def _host_array(self, name: str) -> Array:
        value = self._values[name]
        assert value.shape is not None
        return self._device.host(value.nbytes).view(numpy_dtype(value.dtype)).reshape(value.shape)

    def _bind(self, artifact: Contents, threads: int) -> None:
        images = _images(artifact, self.stage)
        self._groups.append(("", (), [self._up(name) for name in self.stage.inputs if name in self.arrays]))
        for segment in self.stage.segments:
            if segment.guard or isinstance(segment, SelectSegment):
                raise ArtifactError("a device runs all of a program, and this one has conditions: compile it again")
            if isinstance(segment, NativeSegment):
                for call in segment.calls:
                    self._groups.append((call.symbol, call.origin, self._launches(call, images)))
            else:
                origin = tuple(node for node, _ in segment.reasons)
                self._groups.append((segment.model, origin, self._fallback(segment, artifact, threads)))
        self._groups.append(("", (), [self._down(name) for name in self.stage.outputs if name in self.arrays]))

    def _launches(self, call: KernelCall, images: dict[str, bytes]) -> list[Step]:
        names = (*call.inputs, *call.outputs, *call.scratch)
        if call.symbol not in images:
            raise ArtifactError(f"the artifact has no kernel {call.symbol}: it is damaged, compile it again")
        return [
            self._device.kernel(
                images[call.symbol], launch, [self._pointers[names[place]] for place in launch.arguments]
            )
            for launch in call.launches
        ]

    def _fallback(self, segment: FallbackSegment, artifact: Contents, threads: int) -> list[Step]:
        from graphopt.runtime import fallback

        model, weights = artifact.files[segment.model], artifact.weight_arrays(self.stage, segment.weights)
        call = fallback.bind(segment, model, weights, self._values, self.arrays, self.host, threads)
        downs = [self._down(name) for name in segment.inputs if name in self.arrays]
        ups = [self._up(name) for name in segment.outputs if name in self.arrays]
        return [*downs, self._device.synchronize, call, *ups]

    def _copy(self, name: str, source: int) -> Step:
        pointer, nbytes = self._pointers[name], self._values[name].nbytes
        return lambda: self._device.copy(pointer, source, nbytes)

    def _up(self, name: str) -> Step:
        flat, pointer = _flat(self.arrays[name]), self._pointers[name]
        return lambda: self._device.upload(pointer, flat)

    def _down(self, name: str) -> Step:
        flat, pointer = _flat(self.arrays[name]), self._pointers[name]
        return lambda: self._device.download(flat, pointer)


def _images(artifact: Contents, stage: Stage) -> dict[str, bytes]:
    """The kernels of a stage by the symbol of their function: machine code, or source."""
    if not stage.library:
        return {}
    data, index = artifact.weights(stage.library)
    images = {}
    for symbol, entry in index.items():
        if entry.dtype != "uint8":
            raise ArtifactError(f"{stage.library} is damaged: {symbol[:100]!r} is no kernel")
        images[symbol] = bytes(data[entry.start : entry.start + entry.nbytes])
    return images


def _all(steps: Iterable[Step]) -> None:
    for step in steps:
        step()


def _flat(array: Array) -> Array:
    return array.reshape(-1).view(np.uint8)
