"""How long convolutions and changes of layout take on a GPU, about: what choosing between them goes by without one.

A product takes what the writer that would be chosen for it says of its best tile, or the instructions that find its
operands, whichever is more, and no less than its operands and results take at the memory's bandwidth. On tensor cores
the multiplications are so cheap that finding the operands decides: convolutions on planes look for every element by
itself, those on blocks for 16 bytes at once. Every launch is counted. Nothing here was fitted to a device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from graphopt.program import ITEM_BYTES
from graphopt.targets.converters.base import HALVES
from graphopt.targets.gpu.devices import Device
from graphopt.targets.gpu.kernels import simt
from graphopt.work import Work

LAUNCH = 2e-6
"""Seconds of a kernel that has nothing to do."""

REACHED = 0.8
"""Share of the memory's bandwidth that kernels bound by it reach."""

CLOCK = simt.CLOCK

ADDRESS = 24
"""Instructions that find a patch's element: its tap, its pixel, and whether that is inside the image."""

ISSUED = 128
"""Instructions that the threads of a multiprocessor begin in a cycle."""

TENSOR_TILES = ((128, 128), (128, 64), (64, 128), (64, 64), (32, 64), (64, 32), (32, 32), (16, 128), (128, 16))
TENSOR_SHARE = 0.6
"""Of the tensor cores' peak, for the largest tile; a smaller one spends more on its operands."""
TENSOR_SLICE = 32
SPLITS = (1, 2, 4, 8, 16)
LATENCY = 500 / CLOCK
"""Seconds until a slice of operands is there, and how many are on their way."""
STAGES = 4
VECTOR = 16
"""Bytes of the widest load."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the estimates of writers look at of a product."""

    batch: int
    m: int
    n: int
    k: int
    dtype: str


@dataclass(frozen=True, slots=True)
class Loads:
    """Elements of the left and of the right operand that one load takes."""

    left: int
    right: int


class Estimates:
    """For one device; products are asked about once."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._known: dict[tuple[Any, ...], float] = {}

    def seconds(self, work: Work, units: str = "") -> float | None:
        """Seconds of `work`, whose products may use `units`; infinity where there is no kernel, None if not known."""
        known = {
            "Conv": self._planar,
            "Conv2dBlocked": self._blocked,
            "Conv2dWinograd": self._winograd,
            "DepthwiseConv2dBlocked": self._depthwise,
        }
        if work.op_type in ("ToBlocked", "FromBlocked"):
            return LAUNCH + self._moved(work)
        if work.op_type in ("Conv2dIm2col", "Conv2dFft"):
            return math.inf
        find = known.get(work.op_type)
        return None if find is None else find(work, units)

    def _moved(self, work: Work) -> float:
        """Seconds to read the operands and write the result once."""
        size = ITEM_BYTES[work.operands[0].dtype]
        elements = math.prod(work.shape) + sum(math.prod(operand.shape) for operand in work.operands)
        return elements * size / (REACHED * self.device.bandwidth)

    def _threads(self, elements: float) -> float:
        """Seconds to find so many elements."""
        return elements * ADDRESS / (self.device.multiprocessors * ISSUED * CLOCK)

    def _planar(self, work: Work, units: str) -> float:
        attributes = dict(work.attributes)
        groups, dtype = int(str(attributes["group"])), work.operands[0].dtype
        _, deep, *kernel = work.operands[1].shape
        images, channels, *out = work.shape
        depth, positions, rows = deep * math.prod(kernel), math.prod(out), channels // groups
        if depth <= 64 and rows == 1:
            return LAUNCH + max(self._moved(work), self._threads(math.prod(work.shape) * depth))
        wide = VECTOR // ITEM_BYTES[dtype]
        flat = math.prod(kernel) == 1 and attributes["strides"] == (1,) * len(kernel) and not any(_pads(work))
        loads = Loads(wide if rows % wide == 0 else 1, wide if flat and positions % wide == 0 else 1)
        sizes = Sizes(images * groups, rows, positions, depth, _kept(dtype))
        return LAUNCH + max(self._moved(work), self._product(sizes, dtype, units, loads))

    def _blocked(self, work: Work, units: str) -> float:
        groups, dtype = int(str(dict(work.attributes)["group"])), work.operands[0].dtype
        blocks, deep, *kernel, lanes, b = work.operands[1].shape
        images, _, height, width, _ = work.shape
        wide = VECTOR // ITEM_BYTES[dtype]
        sizes = Sizes(
            groups,
            images * height * width,
            blocks // groups * b,
            deep * math.prod(kernel) * lanes,
            _kept(dtype),
        )
        loads = Loads(wide if lanes % wide == 0 else 1, wide)
        return LAUNCH + max(self._moved(work), self._product(sizes, dtype, units, loads))

    def _winograd(self, work: Work, _: str) -> float:
        """Two transforms, which read and write, and a product that is plain on both sides."""
        x, u = work.operands[:2]
        taps, blocks, deep, lanes, b = u.shape
        images, _, height, width, _ = work.shape
        m = math.isqrt(taps) - 2
        tiles = images * -(-height // m) * -(-width // m)
        size = ITEM_BYTES[x.dtype]
        wide = VECTOR // size
        read, written = taps * tiles * deep * lanes, taps * tiles * blocks * b
        speed = REACHED * self.device.bandwidth
        transforms = (math.prod(x.shape) + read + written + math.prod(work.shape)) * size / speed
        transforms = max(transforms, self._threads((read + written) / 8))  # some instructions for each of its values
        sizes = Sizes(taps, tiles, blocks * b, deep * lanes, x.dtype)
        memory = (read + written + math.prod(u.shape)) * size / speed
        return 3 * LAUNCH + transforms + max(memory, self._product(sizes, x.dtype, "", Loads(wide, wide)))

    def _depthwise(self, work: Work, _: str) -> float:
        taps = math.prod(work.operands[1].shape[1:3])
        wide = VECTOR // ITEM_BYTES[work.operands[0].dtype]
        return LAUNCH + max(self._moved(work), self._threads(math.prod(work.shape) * taps / wide))

    def _product(self, sizes: Sizes, dtype: str, units: str, loads: Loads) -> float:
        key = sizes, dtype, units, loads
        if key not in self._known:
            kind = dtype if dtype in HALVES else units if dtype == "float32" else ""
            tensor = self.device.cuda and kind != ""
            self._known[key] = self._tensor(sizes, kind, loads) if tensor else self._ordinary(sizes, loads)
        return self._known[key]

    def _ordinary(self, sizes: Sizes, loads: Loads) -> float:
        """On the ordinary units."""
        product: Any = sizes
        fitting = simt.tiles(product, self.device)
        if not fitting:
            return math.inf
        tile = fitting[0]
        return max(simt.seconds(product, tile, self.device), self._found(sizes, (tile.m, tile.n), loads))

    def _found(self, sizes: Sizes, tile: tuple[int, int], loads: Loads) -> float:
        """Seconds to find the operands of all tiles."""
        blocks = sizes.batch * math.ceil(sizes.m / tile[0]) * math.ceil(sizes.n / tile[1])
        return self._threads(blocks * sizes.k * (tile[0] / loads.left + tile[1] / loads.right))

    def _tensor(self, sizes: Sizes, kind: str, loads: Loads) -> float:
        """On tensor cores: rounds of blocks, each bound by arithmetic, the second-level cache, or waiting for it."""
        rate = self.device.rates[kind] / self.device.multiprocessors
        size = 4 if kind == "tf32" else 2
        best = math.inf
        for m, n in TENSOR_TILES:
            for split in SPLITS:
                slices = math.ceil(sizes.k / TENSOR_SLICE / split)
                blocks = sizes.batch * math.ceil(sizes.m / m) * math.ceil(sizes.n / n) * split
                together = min(4, math.ceil(blocks / self.device.multiprocessors))
                rounds = math.ceil(blocks / (self.device.multiprocessors * together))
                share = TENSOR_SHARE * min(1.0, (m * n / (m + n)) / 64 + 0.25)
                arithmetic = together * 2 * m * n * TENSOR_SLICE / (rate * share)
                fetched = together * (m + n) * TENSOR_SLICE * size / (48 * CLOCK)
                waiting = LATENCY / (STAGES - 1)
                results = sizes.batch * sizes.m * sizes.n
                again = 0.0 if split == 1 else 2 * LAUNCH + 2 * split * results * 4 / self.device.bandwidth
                seconds = rounds * ((slices + 3) * max(arithmetic, fetched, waiting)) + again
                best = min(best, max(seconds, self._found(sizes, (m, n), loads)))
        return best


def _kept(dtype: str) -> str:
    return "float32" if dtype in HALVES else dtype


def _pads(work: Work) -> tuple[int, ...]:
    pads = dict(work.attributes)["pads"]
    return pads if isinstance(pads, tuple) else ()
