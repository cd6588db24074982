"""Times kernels on this machine: candidates interleaved, weights from memory as in a model, with the noise.

In a model every layer's weights are read once per run, and so much else in between that they come from memory again;
a kernel repeated alone would find them in its caches. Each run therefore reads its constants at another place of a pool
that is larger than the last-level cache. Activations stay where the previous run left them, as they do in a model.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm.runtime import Tensor

from graphopt.cost.workload import Timing, Workload
from graphopt.lowering.target import Lowered, Target
from graphopt.program.program import Place
from graphopt.runtime.devices import library
from graphopt.targets.common import concat_views, host_arrays
from graphopt.targets.common.measured_node import Progress, lowered_alone, timing

ROUNDS = 7
BLOCK_SECONDS = 2e-3
LEAST_RUNS = 3
POOL_BYTES = 96 << 20
"""Larger than the last-level caches of desktop and most server processors; a larger one keeps some weights warm."""
MOST_PLACES = 256
SMALL_CONSTANT = 4096


def measure(
    groups: Sequence[Sequence[tuple[Workload, str]]], target: Target, threads: int, progress: Progress | None = None
) -> list[list[Timing | None]]:
    """Time every (workload, tile); those of one group are interleaved. None where a kernel cannot be built."""
    if progress is not None:
        progress(f"building {sum(map(len, groups))} kernels to measure")
    lowered = [
        [lowered_alone(target, workload, tile, f"g{i}_{j}_") for j, (workload, tile) in enumerate(g)]
        for i, g in enumerate(groups)
    ]
    built = [item for group in lowered for item in group if item is not None]
    if not any(item.functions for item in built):  # nothing could be lowered
        return [[None] * len(group) for group in groups]
    load = _build(target, built)
    with ThreadPoolExecutor(
        1
    ) as executor:  # TVM keeps one pool of threads per calling thread: leave the caller's alone
        return executor.submit(_measure_all, groups, lowered, load, threads, progress).result()


def _measure_all(
    groups: Sequence[Sequence[tuple[Workload, str]]],
    lowered: Sequence[Sequence[Lowered | None]],
    load: Callable[[str], Callable[..., Any]],
    threads: int,
    progress: Progress | None,
) -> list[list[Timing | None]]:
    library.Threads(threads)
    pool = _Pool()
    results: list[list[Timing | None]] = []
    for done, (group, items) in enumerate(zip(groups, lowered, strict=True)):
        runners = [None if item is None else _Runner(item, load, pool) for item in items]
        times = iter(_interleave([runner for runner in runners if runner is not None]))
        results.append(
            [
                None if runner is None else timing(next(times), tile)
                for runner, (_, tile) in zip(runners, group, strict=True)
            ]
        )
        if progress is not None:
            progress(f"measuring kernels, {done + 1} of {len(groups)} groups")
    return results


def _build(target: Target, items: Sequence[Lowered]) -> Callable[[str], Callable[..., Any]]:
    functions = {symbol: function for item in items for symbol, function in item.functions.items()}
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        path = Path(folder) / "measured.so"
        path.write_bytes(target.library(functions))
        return library.load(path)


class _Pool:
    """Bytes that weights are read from, filled with random numbers once."""

    def __init__(self) -> None:
        self._bytes = host_arrays.empty((POOL_BYTES,), "uint8")
        # Small positive numbers of any float type would do; float32 is what nearly all weights are.
        numbers = self._bytes.view(np.float32)
        block = np.random.default_rng(0).standard_normal(1 << 18, dtype=np.float32) * 0.1
        numbers[:] = np.resize(block, numbers.shape)

    def places(self, array: NDArray[Any]) -> list[NDArray[Any]]:
        """The array itself, or several arrays of its shape whose total size exceeds the caches."""
        step = -(-array.nbytes // 64) * 64
        if array.dtype != np.float32 or array.nbytes < SMALL_CONSTANT or 2 * step > POOL_BYTES:
            return [array]
        count = min(MOST_PLACES, POOL_BYTES // step)
        return [
            self._bytes[i * step : i * step + array.nbytes].view(array.dtype).reshape(array.shape) for i in range(count)
        ]


@dataclass(slots=True)
class _Runner:
    """Runs the calls of one lowered workload on memory of its own."""

    calls: list[tuple[Callable[..., Any], list[tuple[Tensor, ...]]]]
    position: int = 0

    def __init__(self, lowered: Lowered, load: Callable[[str], Callable[..., Any]], pool: _Pool) -> None:
        generator = np.random.default_rng(1)
        arrays: dict[str, list[NDArray[Any]]] = {}
        for value in lowered.values.values():
            if value.place is Place.VIEW:
                continue
            if value.name in lowered.constants:
                constant = lowered.constants[value.name]
                arrays[value.name] = pool.places(constant) if constant.ndim else [constant]
            else:
                array = host_arrays.empty(value.shape or (), value.dtype)
                array[...] = generator.standard_normal(array.shape).astype(value.dtype)
                arrays[value.name] = [array]
        for value in lowered.values.values():
            if value.place is Place.VIEW:
                arrays[value.name] = [concat_views.shown(array, value) for array in arrays[value.of]]
        self.calls = []
        for call in lowered.calls:
            operands = [arrays[name] for name in (*call.inputs, *call.outputs, *call.scratch)]
            count = max(map(len, operands))
            tensors = [[host_arrays.tensor(array) for array in places] for places in operands]
            self.calls.append(
                (load(call.symbol), [tuple(each[i % len(each)] for each in tensors) for i in range(count)])
            )
        self.position = 0

    def run(self, runs: int) -> float:
        """Seconds of one run, the mean of `runs`."""
        start = time.perf_counter()
        for _ in range(runs):
            self.position += 1
            for function, arguments in self.calls:
                function(*arguments[self.position % len(arguments)])
        return (time.perf_counter() - start) / runs


def _interleave(runners: Sequence[_Runner]) -> list[list[float]]:
    """For each runner, the mean seconds per run in each round."""
    lengths = []
    for runner in runners:
        runner.run(1)
        lengths.append(max(LEAST_RUNS, round(BLOCK_SECONDS / max(runner.run(LEAST_RUNS), 1e-7))))
    rounds: list[list[float]] = [[] for _ in runners]
    for number in range(ROUNDS):
        order = range(len(runners)) if number % 2 == 0 else reversed(range(len(runners)))
        for index in order:
            rounds[index].append(runners[index].run(min(lengths[index], 2000)))
    return rounds
