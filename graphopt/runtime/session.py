"""Sessions: run a program in this process, one rank or all stages of several ranks one after the other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from graphopt.errors import FeedError, GraphoptError
from graphopt.program import schedule
from graphopt.program.contents import Contents
from graphopt.program.program import Port
from graphopt.program.weights import Array, numpy_dtype
from graphopt.runtime import feeds
from graphopt.runtime.device_stage import DeviceStageRunner
from graphopt.runtime.devices import host as cpu
from graphopt.runtime.devices.device import Device, needs_device
from graphopt.runtime.devices.dlpack import LEGACY_STREAM, DeviceTensor, Foreign
from graphopt.runtime.devices.forked import living
from graphopt.runtime.devices.opening import open_device
from graphopt.runtime.runner import Runner, runners
from graphopt.runtime.stage import CallTime, StageRunner

_PATTERNS = (0xA5, 0x5A)
"""Complements: a byte that a run writes the same way twice cannot equal both."""


class Session:
    """Runs an artifact. One run at a time: a second thread that calls `run` waits for the first.

    Attributes:
        inputs, outputs: the program's ports.
        threads: number of threads that kernels use.
        device: the device of a program for a GPU, else None.
    """

    def __init__(self, artifact: Contents, threads: int | None = None, device: Device | None = None) -> None:
        """Allocate the arenas, map the weights, load the kernels.

        Args:
            artifact: the program and its files.
            threads: threads per kernel; default one per physical core this process may use.
            device: shared with other sessions, which then run one after the other; None opens the artifact's own.

        Raises:
            ArtifactError: a part of the artifact cannot be used.
            GraphoptError: `threads` is out of range, or there is no such device.
        """
        program = artifact.program
        self.inputs: tuple[Port, ...] = program.inputs
        self.outputs: tuple[Port, ...] = program.outputs
        self.threads = cpu.default_threads() if threads is None else threads
        if self.threads < 1:
            raise GraphoptError(f"a session needs at least one thread, not {self.threads}")
        self._program = program
        self._constants = artifact.constants
        self._lock = threading.Lock()
        self._begin: Callable[[], None] = lambda: None
        self._end = self._begin
        on_device = needs_device(artifact.manifest)
        self.device = (device or open_device(artifact.manifest)) if on_device else None
        if any(stage.library for stage in program.stages) and not on_device:
            from graphopt.runtime.devices.library import Threads

            pool = living(lambda: Threads(self.threads))
            self._begin, self._end = pool.begin, pool.end
        self._runners = runners(program.stages, artifact, self.threads, self.device)
        self._transfers = self._plan_transfers()
        self._makers = {
            port.name: next(runner for runner in self._runners if port.name in runner.stage.outputs)
            for port in program.outputs
        }

    @property
    def arena_bytes(self) -> int:
        """Planned bytes of all arenas."""
        return sum(stage.arena_bytes for stage in self._program.stages)

    @property
    def arena_lower_bound(self) -> int:
        """Lower bound of any plan in bytes: the largest sum of live values, added up over the stages."""
        return sum(stage.arena_lower_bound for stage in self._program.stages)

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Run once; returns the outputs by name as new arrays (dynamic outputs: as ONNX Runtime returns them).

        Args:
            feeds: input name -> array of the port's dtype and shape (times the micro-batches on axis 0). A session on a
                device also takes tensors in device memory of any library that supports DLPack, without a host copy.

        Raises:
            FeedError: the feeds do not match the program's inputs.
            GraphoptError: a kernel or fallback model failed.
        """
        return self._run(feeds, lambda runner: runner.run(), in_place=True)

    def run_device(self, feeds: Mapping[str, Any], stream: int | None = None) -> dict[str, DeviceTensor]:
        """Run once and leave the outputs on the device: `torch.from_dlpack(output)` shows one without copying it.

        The host does not wait for the device. The outputs are the session's own memory, which its next run overwrites.

        Args:
            feeds: as in `run`.
            stream: the caller's stream on CUDA (`torch.cuda.current_stream().cuda_stream`); None is the default stream.
            The
                run waits for earlier work there, such as reading old outputs, and later work there waits for the run.

        Raises:
            FeedError: the feeds do not match the program's inputs.
            GraphoptError: the program has several stages or is not for a device, or it failed.
        """
        runner = self._runners[0]
        if self.device is None or not isinstance(runner, DeviceStageRunner):
            raise GraphoptError("the program runs on the CPU: outputs stay on a device if compiled with --target cuda")
        if len(self._runners) > 1 or self._program.micro_batches > 1:
            raise GraphoptError("outputs stay on the device without --ranks and --micro-batches: compile it again")
        host = next((port.name for port in self.outputs if port.name not in runner.arrays), None)
        if host is not None:
            raise GraphoptError(f"output {host!r} is made on the host: use run")
        checked = self._check(feeds)
        theirs = stream or LEGACY_STREAM
        with self._lock:
            self.device.activate()
            self.device.follow(theirs)
            self._fill(runner, checked, 0, 1)
            runner.run(download=False)
            self.device.precede(theirs)
            return {
                port.name: DeviceTensor(runner.shared(port.name), port.dtype, port.shape or (), self.device, runner)
                for port in self.outputs
            }

    def replay(self, feeds: Mapping[str, Any]) -> Callable[[], None]:
        """A function that enqueues a run on the device without the copies of inputs and outputs, for `device.laps`.

        Args:
            feeds: arrays of the host, the inputs of these runs.

        Raises:
            GraphoptError: as in `run_device`.
        """
        self.run_device(feeds)
        assert isinstance(self._runners[0], DeviceStageRunner)
        return self._runners[0].replay()

    def state(self) -> dict[str, Array]:
        """Copies of all state values by name: weights that training changes, momentum, running means, counters."""
        with self._lock:
            return {name: array for runner in self._runners for name, array in runner.state().items()}

    def load_state(self, arrays: Mapping[str, Any]) -> None:
        """Set state values; those not named stay as they are.

        Raises:
            FeedError: a name, dtype or shape is not that of a state value; nothing was set then.
        """
        known = {
            state.value: (runner, next(value for value in runner.stage.values if value.name == state.value))
            for runner in self._runners
            for state in runner.stage.states
        }
        checked = {name: np.asarray(array) for name, array in arrays.items()}
        for name, array in checked.items():
            if name not in known:
                raise FeedError(f"the program has no state {name!r}; it has {', '.join(sorted(known)) or 'none'}")
            value = known[name][1]
            if array.dtype != numpy_dtype(value.dtype) or array.shape != value.shape:
                raise FeedError(f"state {name!r} is {value.dtype} {value.shape}, not {array.dtype} {array.shape}")
        with self._lock:
            for name, array in checked.items():
                known[name][0].load_state({name: array})

    @property
    def device_bytes(self) -> int:
        """Bytes of arenas and weights on the device; 0 for a program on the CPU."""
        return sum(runner.nbytes for runner in self._runners if isinstance(runner, DeviceStageRunner))

    def profile(self, feeds: Mapping[str, Any]) -> tuple[CallTime, ...]:
        """Run once; returns the time of every kernel call and fallback segment, in order of execution."""
        times: list[CallTime] = []
        self._run(feeds, lambda runner: times.extend(runner.profile()), in_place=True)
        return tuple(times)

    def trace(self, feeds: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
        """Run once; yields after every call the nodes that it computes and copies of the values it wrote.

        Yields nothing for a program of several stages, of several micro-batches, or for a device.
        """
        runner = self._runners[0]
        if len(self._runners) > 1 or self._program.micro_batches > 1 or not isinstance(runner, StageRunner):
            return
        checked = self._check(feeds)
        with self._lock:
            self._begin()
            try:
                self._fill(runner, checked, 0, 1)
                yield from runner.trace()
            finally:
                self._end()

    def measure_arena(self, feeds: Mapping[str, Any]) -> tuple[int, ...]:
        """Per stage, the bytes of the arena that a run touches, up to the highest one.

        The arena is filled with a pattern before the run, twice with different ones. A result above the planned size
        (`Stage.arena_bytes`) means that a kernel writes outside the arena.
        """
        highest = [0] * len(self._runners)
        for pattern in _PATTERNS:
            with self._lock:
                for runner in self._runners:
                    runner.poison(pattern)
            self.run(feeds)
            highest = [max(old, runner.high_water(pattern)) for old, runner in zip(highest, self._runners, strict=True)]
        return tuple(highest)

    def _run(
        self, given: Mapping[str, Any], execute: Callable[[Runner], None], in_place: bool = False
    ) -> dict[str, Any]:
        checked = self._check(given)
        return living(lambda: self._run_alone(checked, execute, in_place))

    def _run_alone(
        self, checked: Mapping[str, Any], execute: Callable[[Runner], None], in_place: bool
    ) -> dict[str, Any]:
        with self._lock:
            self._begin()
            try:
                return self._run_checked(checked, execute, in_place)
            finally:
                self._end()

    def _run_checked(
        self, checked: Mapping[str, Any], execute: Callable[[Runner], None], in_place: bool
    ) -> dict[str, Any]:
        count = self._program.micro_batches
        if in_place and count == len(self._runners) == 1 and isinstance(self._runners[0], StageRunner):
            return self._run_in_place(self._runners[0], checked, execute)
        outputs = self._empty_outputs(count) if count > 1 else {}
        for micro_batch in range(count):
            for runner, transfers in zip(self._runners, self._transfers, strict=True):
                self._fill(runner, checked, micro_batch, count)
                for source, target in transfers:
                    np.copyto(target, source)
                execute(runner)
            for name, runner in self._makers.items():
                if count == 1:
                    outputs[name] = own(runner, name)
                else:
                    part = runner.arrays[name]
                    outputs[name][micro_batch * len(part) : (micro_batch + 1) * len(part)] = part
        return outputs

    def _run_in_place(
        self, runner: StageRunner, checked: Mapping[str, Any], execute: Callable[[Runner], None]
    ) -> dict[str, Any]:
        """Run with kernels that read large feeds and write large outputs directly in the caller's memory."""
        bound = runner.in_place
        outputs: dict[str, Any] = dict.fromkeys(self._makers)
        try:
            copied = {name: feed for name, feed in checked.items() if not bound.bind(name, feed)}
            if copied:
                fill(runner, copied, 0, 1)
            for name in outputs:
                if bound.takes(name):
                    outputs[name] = array = fresh(runner.arrays[name])
                    bound.bind(name, array)
            execute(runner)
        finally:
            bound.release()
        for name, array in outputs.items():
            if array is None:
                outputs[name] = own(runner, name)
        return outputs

    def _check(self, given: Mapping[str, Any]) -> dict[str, Any]:
        return feeds.check(self.inputs, given, self._program.micro_batches, self.device, self._constants)

    def _fill(self, runner: Runner, checked: Mapping[str, Any], micro_batch: int, count: int) -> None:
        """Call `fill` once the device has read the previous contents of the host's arrays."""
        if self.device is not None:
            self.device.activate()
            if not all(isinstance(feed, Foreign) for feed in checked.values()):
                self.device.synchronize()
        fill(runner, checked, micro_batch, count)

    def _empty_outputs(self, count: int) -> dict[str, Any]:
        outputs = {}
        for port in self.outputs:
            assert port.shape is not None
            outputs[port.name] = np.empty(feeds.full_shape(port.shape, count), numpy_dtype(port.dtype))
        return outputs

    def _plan_transfers(self) -> list[list[tuple[Array, Array]]]:
        """Per stage, (source, target) array views of the values that it gets from earlier stages."""
        transfers: list[list[tuple[Array, Array]]] = [[] for _ in self._runners]
        for (source, target), names in schedule.carried(self._program.actions).items():
            for name in names:
                transfers[target].append((self._runners[source].arrays[name], self._runners[target].arrays[name]))
        return transfers


def fill(runner: Runner, checked: Mapping[str, Any], micro_batch: int, count: int) -> None:
    """Copy the feeds of `micro_batch`, of `count`, into the stage's inputs."""
    for name in runner.stage.inputs:
        if name not in checked:
            continue
        feed = checked[name]
        target = runner.arrays.get(name)
        if isinstance(runner, DeviceStageRunner):
            runner.given.pop(name, None)
            if isinstance(feed, Foreign):
                runner.given[name] = feed.pointer + micro_batch * runner.bytes[name].nbytes
                continue
        if target is None:
            runner.host[name] = feed
        elif count == 1:
            np.copyto(target, feed)
        else:
            np.copyto(target, feed[micro_batch * len(target) : (micro_batch + 1) * len(target)])


def fresh(array: Array) -> Array:
    """An uninitialised array like `array`; kernels accept every address that numpy allocates."""
    return np.empty(array.shape, array.dtype)


def own(runner: Runner, name: str) -> Any:
    """A copy of an output, valid after the next run."""
    array = runner.arrays.get(name)
    if array is None:
        value = runner.host[name]
        return value.copy() if isinstance(value, np.ndarray) else value
    return array.copy()
