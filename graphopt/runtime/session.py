"""Running a program in this process: one rank, or all stages of several ranks one after the other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from graphopt import schedule
from graphopt.artifact import Artifact
from graphopt.errors import GraphoptError
from graphopt.program import Port
from graphopt.runtime import cpu, device, feeds
from graphopt.runtime.runner import Runner, runners
from graphopt.runtime.stage import CallTime
from graphopt.weights import Array, numpy_dtype

_PATTERNS = (0xA5, 0x5A)
"""Complements: no byte that a run writes twice alike can equal both."""


class Session:
    """Runs an artifact. One run at a time: a second thread that calls `run` waits for the first.

    Attributes:
        inputs, outputs: the program's ports.
        threads: what kernels use.
    """

    def __init__(self, artifact: Artifact, threads: int | None = None) -> None:
        """Allocate the arenas, map the weights, load the kernels.

        Args:
            artifact: what to run.
            threads: of every kernel; default one per physical core this process may use.

        Raises:
            ArtifactError: a part of the artifact cannot be used.
            GraphoptError: `threads` is out of range.
        """
        program = artifact.program
        self.inputs: tuple[Port, ...] = program.inputs
        self.outputs: tuple[Port, ...] = program.outputs
        self.threads = cpu.default_threads() if threads is None else threads
        if self.threads < 1:
            raise GraphoptError(f"a session needs at least one thread, not {self.threads}")
        self._program = program
        self._lock = threading.Lock()
        self._apply_threads: Callable[[], None] = lambda: None
        if any(stage.library for stage in program.stages) and not device.needs_device(artifact.manifest):
            from graphopt.runtime.library import Threads

            self._apply_threads = Threads(self.threads).apply
        self._runners = runners(program.stages, artifact, self.threads)
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
        """Bytes below which no plan can be: the largest sum of live values, added up over the stages."""
        return sum(stage.arena_lower_bound for stage in self._program.stages)

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs by name, as arrays that are the caller's own (dynamic outputs: as ONNX Runtime returns them).

        Args:
            feeds: input name -> array of the port's dtype and shape (times the micro-batches on axis 0).

        Raises:
            FeedError: the feeds do not fit the program's inputs.
            GraphoptError: a kernel or fallback model failed.
        """
        return self._run(feeds, lambda runner: runner.run())

    def profile(self, feeds: Mapping[str, Any]) -> tuple[CallTime, ...]:
        """Run once and give the time of every kernel call and fallback segment, in order of execution."""
        times: list[CallTime] = []
        self._run(feeds, lambda runner: times.extend(runner.profile()))
        return tuple(times)

    def measure_arena(self, feeds: Mapping[str, Any]) -> tuple[int, ...]:
        """Per stage, the bytes of the arena that a run really touches, counted up to the highest one.

        The arena is filled with a pattern before the run, twice with different ones. A result above the planned size
        (`Stage.arena_bytes`) would mean that a kernel writes outside it.
        """
        highest = [0] * len(self._runners)
        for pattern in _PATTERNS:
            with self._lock:
                for runner in self._runners:
                    runner.poison(pattern)
            self.run(feeds)
            highest = [max(old, runner.high_water(pattern)) for old, runner in zip(highest, self._runners, strict=True)]
        return tuple(highest)

    def _run(self, given: Mapping[str, Any], execute: Callable[[Runner], None]) -> dict[str, Any]:
        count = self._program.micro_batches
        checked = feeds.check(self.inputs, given, count)
        with self._lock:
            self._apply_threads()
            outputs = self._empty_outputs(count) if count > 1 else {}
            for micro_batch in range(count):
                for runner, transfers in zip(self._runners, self._transfers, strict=True):
                    fill(runner, checked, micro_batch, count)
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

    def _empty_outputs(self, count: int) -> dict[str, Any]:
        outputs = {}
        for port in self.outputs:
            assert port.shape is not None
            outputs[port.name] = np.empty(feeds.full_shape(port.shape, count), numpy_dtype(port.dtype))
        return outputs

    def _plan_transfers(self) -> list[list[tuple[Array, Array]]]:
        """Per stage, the (source, target) views of the values that it gets from earlier stages."""
        transfers: list[list[tuple[Array, Array]]] = [[] for _ in self._runners]
        for (source, target), names in schedule.carried(self._program.actions).items():
            for name in names:
                transfers[target].append((self._runners[source].arrays[name], self._runners[target].arrays[name]))
        return transfers


def fill(runner: Runner, checked: Mapping[str, Any], micro_batch: int, count: int) -> None:
    """Copy the part of the feeds that belongs to `micro_batch` of `count` into the stage's inputs."""
    for name in runner.stage.inputs:
        if name not in checked:
            continue
        feed = checked[name]
        target = runner.arrays.get(name)
        if target is None:
            runner.host[name] = feed
        elif count == 1:
            np.copyto(target, feed)
        else:
            np.copyto(target, feed[micro_batch * len(target) : (micro_batch + 1) * len(target)])


def own(runner: Runner, name: str) -> Any:
    """An output that stays valid after the next run."""
    array = runner.arrays.get(name)
    if array is None:
        found = runner.host[name]
        return found.copy() if isinstance(found, np.ndarray) else found
    return array.copy()
