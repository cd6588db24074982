"""Seconds of kernels on the device that is here: candidates interleaved, weights from memory as in a whole model.

A candidate's runs are recorded as one graph. Each run reads its weights at another place of a pool that is larger than
the device's second-level cache, because a whole model would have evicted them; activations stay where they are, because
in a model the previous kernel has just written them. The device takes the time, by events around the graph.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from graphopt.cost.workload import Timing, Workload
from graphopt.errors import ArtifactError, CodegenError, GraphoptError
from graphopt.lowering.target import Lowered, Target
from graphopt.program.program import Place
from graphopt.program.views import located
from graphopt.program.weights import numpy_dtype
from graphopt.runtime.devices import host as host_cpu
from graphopt.runtime.devices.device import Device
from graphopt.targets.common.measured_node import Progress, lowered_alone, timing
from graphopt.targets.gpu.code import DeviceCode

ROUNDS = 7
BLOCK_SECONDS = 2e-3
LEAST_RUNS, MOST_RUNS = 3, 256
MOST_REPLAYS = 100
WARM_SECONDS = 0.05
"""Seconds that a device computes before anything is timed: an idle one runs at a low clock."""

CACHES = 2.0
"""The pool that weights are read from, in sizes of the second-level cache, ..."""
LEAST_POOL, MOST_POOL = 16 << 20, 256 << 20
"""... but no smaller or larger: the size that a driver reports may be anything."""

SMALL_CONSTANT = 4096
ALIGNED = 256

_WRITTEN = "written"
"""The region of what kernels write; the others are named after the dtype of the numbers in them."""

Step = Callable[[], None]


class Compiles(Target, Protocol):
    """A target whose kernels a device loads one by one."""

    def image(self, device_code: DeviceCode) -> bytes:
        """What a device loads for code that `lower` gave.

        Raises:
            CodegenError: the compiler refuses it.
        """


def measure(
    groups: Sequence[Sequence[tuple[Workload, str]]], target: Compiles, device: Device, progress: Progress | None = None
) -> list[list[Timing | None]]:
    """Time every (workload, tile); those of one group are interleaved. None where a kernel cannot be built or loaded.

    Raises:
        GraphoptError: the device has not enough memory, or fails.
    """
    say = progress or (lambda _: None)
    say(f"building {sum(map(len, groups))} kernels to measure")
    lowered = [
        [lowered_alone(target, workload, tile, f"g{i}_{j}_") for j, (workload, tile) in enumerate(g)]
        for i, g in enumerate(groups)
    ]
    built = [item for group in lowered for item in group if item is not None]
    images = _images(target, {symbol: device_code for item in built for symbol, device_code in item.functions.items()})
    facts = device.facts()
    pool = round(min(max(CACHES * facts["l2_bytes"], LEAST_POOL), MOST_POOL))
    layouts = {id(item): MemoryLayout.of(item, pool) for item in built}
    device.activate()
    memory = _Memory(device, list(layouts.values()))
    results: list[list[Timing | None]] = []
    warm = False
    for done, (group, items) in enumerate(zip(groups, lowered, strict=True)):
        runners = [None if item is None else _runner(device, item, layouts[id(item)], memory, images) for item in items]
        ready = [(workload, runner) for (workload, _), runner in zip(group, runners, strict=True) if runner is not None]
        try:
            if ready and not warm:
                ready[0][1].warm(WARM_SECONDS)
                warm = True
            for _, runner in ready:
                runner.prepare()
            laps = iter(_interleave(device, [runner for _, runner in ready]))
        except GraphoptError as error:
            kinds = ", ".join(sorted({workload.op_type for workload, _ in ready}))
            raise GraphoptError(f"{error}, while {kinds} was measured; compile with --costs roofline") from error
        results.append(
            [
                None if runner is None else timing(next(laps), tile)
                for runner, (_, tile) in zip(runners, group, strict=True)
            ]
        )
        say(f"measuring kernels, {done + 1} of {len(groups)} groups")
    return results


def _images(target: Compiles, functions: Mapping[str, DeviceCode]) -> dict[str, bytes]:
    """The images that the device loads, of all kernels that the compiler accepts."""

    def image(device_code: DeviceCode) -> bytes | None:
        try:
            return target.image(device_code)
        except CodegenError:
            return None

    with ThreadPoolExecutor(host_cpu.available_cpus()) as pool:
        images = dict(zip(functions, pool.map(image, functions.values()), strict=True))
    return {symbol: content for symbol, content in images.items() if content is not None}


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a value lies in a region: `count` places, `step` bytes apart, that runs take in turn."""

    region: str
    start: int
    step: int
    count: int = 1

    def at(self, run: int) -> int:
        """The byte of the region that it begins at in a run."""
        return self.start + run % self.count * self.step


@dataclass(frozen=True, slots=True)
class MemoryLayout:
    """Where the values of one candidate lie. `sizes` are the bytes of every region that it needs.

    Large weights rotate among random numbers. `kept` are the constants that need their values, and memory of their own.
    """

    spots: dict[str, Spot] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    kept: dict[str, NDArray[Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, lowered: Lowered, pool: int) -> MemoryLayout:
        """The layout of a candidate whose weights are to be read from `pool` bytes, or more."""
        layout = cls()
        for value in lowered.values.values():
            if value.place is Place.VIEW:
                continue
            array = lowered.constants.get(value.name)
            if array is not None and (array.dtype.kind not in "fV" or array.nbytes < SMALL_CONSTANT):
                layout.kept[value.name] = np.ascontiguousarray(array)
                continue
            step = -(-max(value.nbytes, 1) // ALIGNED) * ALIGNED
            count = 1 if array is None else min(MOST_RUNS, -(-pool // step))
            read = array is not None or value.name in lowered.inputs
            region = value.dtype if read else _WRITTEN
            start = layout.sizes.get(region, 0)
            layout.spots[value.name] = Spot(region, start, step, count)
            layout.sizes[region] = start + step * count
        return layout


class _Memory:
    """The regions, as large as any candidate needs them, filled with random numbers once."""

    def __init__(self, device: Device, layouts: Sequence[MemoryLayout]) -> None:
        self._device = device
        sizes: dict[str, int] = {}
        for layout in layouts:
            for region, size in layout.sizes.items():
                sizes[region] = max(size, sizes.get(region, 0))
        self.regions = {region: device.allocate(size) for region, size in sizes.items()}
        for region, size in sizes.items():
            for start, numbers in _filling(region, size):
                device.upload(self.regions[region] + start, numbers)
                device.synchronize()

    def own(self, array: NDArray[Any]) -> int:
        """Memory that holds `array`."""
        pointer = self._device.allocate(array.nbytes)
        self._device.upload(pointer, array.reshape(-1).view(np.uint8))
        self._device.synchronize()
        return pointer


def _filling(region: str, size: int) -> Iterator[tuple[int, NDArray[Any]]]:
    """Bytes for a region, piece by piece: small random floats, zeros of other types."""
    piece = 4 << 20
    data = np.zeros(min(piece, size), np.uint8)
    if region != _WRITTEN and region.startswith(("float", "bfloat")):
        dtype = numpy_dtype(region)
        count = -(-data.nbytes // dtype.itemsize)
        random = np.random.default_rng(0).standard_normal(count, dtype=np.float32) * 0.1
        data = random.astype(dtype).view(np.uint8)[: data.nbytes]
    for start in range(0, size, piece):
        yield start, data[: min(piece, size - start)]


def _runner(
    device: Device, lowered: Lowered, layout: MemoryLayout, memory: _Memory, images: Mapping[str, bytes]
) -> _Runner | None:
    """None where the device cannot load a kernel, or has no room for a block of it."""
    if not all(call.symbol in images for call in lowered.calls):
        return None
    try:
        return _Runner(device, lowered, layout, memory, images)
    except ArtifactError:
        return None


class _Runner:
    """Runs the calls of one candidate."""

    def __init__(
        self, device: Device, lowered: Lowered, layout: MemoryLayout, memory: _Memory, images: Mapping[str, bytes]
    ) -> None:
        self._device, self._lowered, self._layout, self._memory, self._images = device, lowered, layout, memory, images
        self._own = {name: memory.own(array) for name, array in layout.kept.items()}
        self._count = max((spot.count for spot in layout.spots.values()), default=1)
        self.runs, self.replays = 1, 1
        self._step = self._recorded(1)

    def prepare(self) -> None:
        """Time a run, and record as many runs as make a timed block."""
        self._step()
        self._device.synchronize()
        once = max(float(np.median([self.lap(), self.lap(), self.lap()])), 1e-7)
        self.runs = min(max(LEAST_RUNS, round(BLOCK_SECONDS / once)), MOST_RUNS)
        self._step = self._recorded(self.runs)
        self.replays = min(max(1, round(BLOCK_SECONDS / (once * self.runs))), MOST_REPLAYS)
        self._step()
        self._device.synchronize()

    def _recorded(self, runs: int) -> Step:
        return self._device.record([step for run in range(runs) for step in self._bound(run % self._count)])

    def _bound(self, run: int) -> Iterator[Step]:
        for call in self._lowered.calls:
            names = (*call.inputs, *call.outputs, *call.scratch)
            for launch in call.launches:
                pointers = [self._pointer(names[place], run) for place in launch.arguments]
                yield self._device.kernel(self._images[call.symbol], launch, pointers)

    def _pointer(self, name: str, run: int) -> int:
        location = located(self._lowered.values[name], self._lowered.values)
        assert location is not None
        owner, inside = location
        if owner.name in self._own:
            return self._own[owner.name] + inside
        spot = self._layout.spots[owner.name]
        return self._memory.regions[spot.region] + spot.at(run) + inside

    def enqueue(self) -> None:
        """Enqueue all recorded runs, as many times as make a timed block."""
        for _ in range(self.replays):
            self._step()

    def lap(self) -> float:
        """Seconds per run of a timed block."""
        return self._device.laps([self.enqueue])[0] / (self.runs * self.replays)

    def warm(self, seconds: float) -> None:
        """Run for so many seconds."""
        start = time.perf_counter()
        while time.perf_counter() - start < seconds:
            self.enqueue()
            self._device.synchronize()


def _interleave(device: Device, runners: Sequence[_Runner]) -> list[list[float]]:
    """Per runner the mean seconds of a run in each round."""
    rounds: list[list[float]] = [[] for _ in runners]
    for number in range(ROUNDS):
        order = list(range(len(runners)))[:: 1 if number % 2 == 0 else -1]
        laps = device.laps([runners[index].enqueue for index in order])
        for index, seconds in zip(order, laps, strict=True):
            rounds[index].append(seconds / (runners[index].runs * runners[index].replays))
    if not all(math.isfinite(seconds) and seconds > 0 for each in rounds for seconds in each):
        raise GraphoptError("the clock of the GPU does not run")
    return rounds
