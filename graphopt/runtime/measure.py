"""Seconds of every call of a stage, each kernel measured alone.

A stage that does not fit into memory can still be measured: one call's operands are the only arrays there are.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from graphopt.errors import GraphoptError
from graphopt.program.contents import Contents
from graphopt.program.program import (
    FallbackSegment,
    KernelCall,
    NativeSegment,
    Place,
    Segment,
    SelectSegment,
    Stage,
    Value,
)
from graphopt.program.views import located
from graphopt.program.weights import numpy_dtype
from graphopt.runtime.devices import host, library
from graphopt.runtime.stage import Bytes, aligned

REPEATS = 5
"""Runs of a kernel after the first; their median counts."""

BANDWIDTH = 1e10
"""Bytes a second by which segments of other kinds than kernels are estimated."""

_PATTERN = 1 << 16
"""Numbers that are drawn; larger operands repeat them."""


def measure_calls(
    stage: Stage, contents: Contents, threads: int | None = None, progress: Callable[[str], None] = lambda _: None
) -> list[float]:
    """Seconds of every step of the stage, in order: of kernel calls measured, of segments of other kinds estimated.

    Calls of one function on the same constants are measured once, on random numbers.

    Raises:
        GraphoptError: a kernel fails, or the stage's kernels run on a device.
    """
    pool = library.Threads(host.default_threads() if threads is None else threads)
    pool.apply()
    kernels = _Kernels(stage, contents)
    known: dict[tuple[str, ...], float] = {}
    seconds = []
    for step in _steps(stage):
        if isinstance(step, KernelCall):
            key = kernels.key(step)
            if key not in known:
                progress(f"measuring {', '.join(step.origin[:1]) or step.symbol}")
                known[key] = kernels.seconds(step)
            seconds.append(known[key])
        else:
            seconds.append(kernels.estimate(step))
    return seconds


def _steps(stage: Stage) -> Iterator[KernelCall | Segment]:
    for segment in stage.segments:
        if isinstance(segment, NativeSegment):
            yield from segment.calls
        else:
            yield segment


class _Kernels:
    """The functions and constants of a stage."""

    def __init__(self, stage: Stage, contents: Contents) -> None:
        self._values = {value.name: value for value in stage.values}
        self._load = library.load(contents.library_file(stage.library)) if stage.library else None
        self._weights, self._index = contents.weights(stage.weights) if stage.weights else (memoryview(b""), {})

    def key(self, call: KernelCall) -> tuple[str, ...]:
        """What the seconds of a call depend on: the function, whose shapes are fixed, and its constants."""
        return (call.symbol, *(name for name in call.inputs if self._constant(name)))

    def _constant(self, name: str) -> bool:
        location = located(self._values[name], self._values)
        return location is not None and location[0].place is Place.WEIGHT

    def seconds(self, call: KernelCall) -> float:
        """The median over `REPEATS` runs on operands of their own."""
        if call.launches:
            raise GraphoptError(f"kernel {call.symbol} runs on a device; only kernels of CPUs are measured one by one")
        assert self._load is not None
        function = self._load(call.symbol)
        operands = [self._operand(name) for name in (*call.inputs, *call.outputs, *call.scratch)]
        times = []
        try:
            for _ in range(1 + REPEATS):
                start = time.perf_counter()
                function(*operands)
                times.append(time.perf_counter() - start)
        except Exception as error:
            raise GraphoptError(
                f"kernel {call.symbol} (nodes {', '.join(call.origin) or 'unknown'}) failed while it was measured: "
                + " ".join(str(error).split())[:300]
            ) from error
        return statistics.median(times[1:])

    def _operand(self, name: str) -> Any:
        value = self._values[name]
        assert value.shape is not None
        data = aligned(value.nbytes)
        location = located(value, self._values)
        if location is not None and location[0].place is Place.WEIGHT:
            start = self._index[location[0].name].start + location[1]
            data[:] = np.frombuffer(self._weights[start : start + value.nbytes], np.uint8)
        else:
            _fill(data, value)
        return library.tensor(data, value.dtype, value.shape)

    def estimate(self, segment: Segment | KernelCall) -> float:
        """Seconds of a segment by the bytes that it reads and writes."""
        if isinstance(segment, FallbackSegment):
            names = (*segment.inputs, *segment.outputs)
        elif isinstance(segment, SelectSegment):
            names = (*segment.outputs, *segment.when_true)
        else:
            names = ()
        return sum(self._values[name].nbytes for name in names if name in self._values) / BANDWIDTH


def _fill(data: Bytes, value: Value) -> None:
    """Normal random numbers, the same each time; whole numbers are 0, so that they are valid as indices."""
    dtype = numpy_dtype(value.dtype)
    data[:] = 0
    if dtype.kind in "iub" or not data.size:
        return
    numbers = np.random.default_rng(0).standard_normal(_PATTERN).astype(dtype).view(np.uint8)
    whole = data.size // numbers.size * numbers.size
    data[:whole].reshape(-1, numbers.size)[:] = numbers
    data[whole:] = numbers[: data.size - whole]
