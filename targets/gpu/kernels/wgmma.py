"""Products on Hopper's tensor cores: four warps multiply together, and read both operands from shared memory.

Operands lie in rows of 64 halves along k, 128 bytes, whose eight chunks of 16 bytes are permuted by the row's last
three bits, as the instruction expects ("128B swizzle", K-major): copies and reads then meet every bank once. Slices are
copied asynchronously into a ring of stages; while one is multiplied, the one before may still be, and others arrive.

Only operands that can be copied so, 16 bytes along k at a time, are computed this way; the others are left to `mma`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from graphopt.targets.gpu.devices import Device
from graphopt.targets.gpu.kernels import split as parts_of
from graphopt.targets.gpu.kernels.access import Reach
from graphopt.targets.gpu.kernels.guards import inside, when
from graphopt.targets.gpu.kernels.mma import CLOCK, LARGEST_GRID, raster, reaches
from graphopt.targets.gpu.kernels.product import Product
from graphopt.targets.gpu.kernels.split import SPLITS, Store
from graphopt.targets.gpu.kernels.strips import COLUMNS, ROWS, Strips
from graphopt.targets.gpu.kernels.warpgroups import CHUNK, DEPTH, GROUP_ROWS, Units
from graphopt.targets.kernels.common import const

ROW = 64
"""Halves of a row in shared memory, and the depth of a slice."""

STRIP = 64
"""Columns of results that leave together, at most."""


@dataclass(frozen=True, slots=True)
class Tile:
    """A block computes m x n results in slices of 64; four warps take 64 rows of it. Written "128x256^4"."""

    m: int
    n: int
    stages: int
    split: int = 1

    @property
    def threads(self) -> int:
        """Of a block."""
        return self.m // GROUP_ROWS * 128

    @property
    def size(self) -> int:
        """Halves of a stage."""
        return (self.m + self.n) * ROW

    @property
    def shared_bytes(self) -> int:
        """Of the stages."""
        return 2 * self.stages * self.size

    @property
    def registers(self) -> int:
        """Of a thread: sums, and some 64 for addresses."""
        return self.n // 2 + 64

    def resident(self, device: Device) -> int:
        """Blocks that share a multiprocessor."""
        of_shared = device.shared_per_multiprocessor // (self.shared_bytes + 1024)
        return max(1, min(device.registers // (self.threads * self.registers), of_shared))

    def __str__(self) -> str:
        return f"{self.m}x{self.n}x{ROW}^{self.stages}" + (f"*{self.split}" if self.split > 1 else "")


TILES = (
    Tile(128, 256, 4),
    Tile(256, 128, 4),
    Tile(128, 192, 4),
    Tile(128, 128, 3),
    Tile(128, 64, 4),
    Tile(64, 256, 4),
    Tile(64, 128, 4),
    Tile(64, 64, 6),
    Tile(64, 32, 8),
    Tile(128, 32, 5),
)


def possible(product: Product) -> bool:
    """Whether both operands are halves in memory, 16 bytes of them together along k."""
    if product.kind not in ("float16", "bfloat16"):
        return False
    return all(reach.contiguous(True, CHUNK) and reach.plain(product.kind) for reach in reaches(product))


def write(product: Product, tile: Tile, units: Units, device: Device) -> Any:
    """The function of `product` with that body."""
    return _Writer(product, tile, units).whole(device)


class _Writer:
    def __init__(self, product: Product, tile: Tile, units: Units) -> None:
        self.product, self.tile, self.units = product, tile, units
        self.left, self.right = reaches(product)

    def whole(self, device: Device) -> Any:
        """The function."""
        p, t = self.product, self.tile
        with IRBuilder() as builder:
            with T.prim_func(s_tir=True):
                T.func_name("main")
                parts_of.split(p, t.split, t.threads, self._tiles)
            return p.replaced(builder.get().body, t.resident(device))

    def _tiles(self, store: Store) -> None:
        """The kernel whose blocks compute tiles."""
        p, t = self.product, self.tile
        rows, columns = math.ceil(p.m / t.m), math.ceil(p.n / t.n)
        with (
            T.launch_thread("blockIdx.x", rows * columns) as block,
            T.launch_thread("blockIdx.z", p.batch * t.split) as bz,
            T.launch_thread("threadIdx.x", t.threads) as thread,
        ):
            self.at: Any = bz
            self.batch: Any = bz if t.split == 1 else bz // t.split
            self.part: Any = 0 if t.split == 1 else bz % t.split
            row, column = raster(block, rows, columns)
            self.row, self.column, self.thread = row * t.m, column * t.n, thread
            self._body(store)

    def _body(self, store: Store) -> None:
        p, t, units = self.product, self.tile, self.units
        units.begin(self.thread, t.threads)
        sums = T.alloc_buffer((t.n // 2,), p.dtype, scope="local")
        with units.unrolled(t.n // 2) as i:
            T.buffer_store(sums, const(0, p.dtype), [i])
        self.shared = T.alloc_buffer((t.stages * t.size,), units.dtype, scope=units.scope)
        units.describe(self.shared)
        slices = math.ceil(math.ceil(p.k / ROW) / t.split)
        first = self.part * slices
        for ahead in range(t.stages - 2):
            self._copy(first + ahead, ahead, slices > ahead)
        with T.serial(0, slices) as i:
            units.wait(t.stages - 3)
            units.publish()
            T.evaluate(T.tvm_storage_sync("shared"))  # the slice before the last is multiplied, by all warps
            self._multiply(sums, i % t.stages)
            following = i + (t.stages - 2)
            self._copy(first + following, following % t.stages, following < slices)
            units.settle(sums, 1)
        units.settle(sums, 0)
        units.wait(0)
        T.evaluate(T.tvm_storage_sync("shared"))
        self._store(sums, store)

    def _copy(self, part: Any, stage: Any, condition: Any) -> None:
        """Begin the copies of a slice; a group is closed also where there is none, so that groups count slices."""
        t = self.tile
        if condition is not False:
            with when(None if condition is True else condition):
                self._side(self.left, self.row, t.m, part, stage * t.size)
                self._side(self.right, self.column, t.n, part, stage * t.size + t.m * ROW)
        self.units.commit()

    def _side(self, reach: Reach, start: Any, extent: int, part: Any, base: Any) -> None:
        total, threads = extent * (ROW // CHUNK), self.tile.threads
        for turn in range(math.ceil(total / threads)):
            item = self.thread + turn * threads
            row, piece = item // (ROW // CHUNK), item % (ROW // CHUNK)
            place, depth = start + row, part * ROW + piece * CHUNK
            chunk = reach.chunk(self.batch, place, depth)
            assert chunk is not None
            exists = inside((place, reach.size, extent), (depth, reach.depth, ROW * self.tile.split))
            conditions = [each for each in (exists, chunk.condition) if each is not None]
            swizzled = tirx.bitwise_xor(piece, row % 8)
            with when(None if (turn + 1) * threads <= total else item < total):
                at = base + row * ROW + swizzled * CHUNK
                self.units.copy(self.shared, at, chunk, tirx.all(*conditions) if conditions else None)

    def _multiply(self, sums: Any, stage: Any) -> None:
        """Begin to multiply one slice."""
        t, units = self.tile, self.units
        left = stage * t.size + self.thread // 128 * (GROUP_ROWS * ROW)
        right = stage * t.size + t.m * ROW
        units.open()
        for step in range(ROW // DEPTH):
            units.multiply_group(sums, t.n, self.shared, left + step * DEPTH, right + step * DEPTH)
        units.close()

    def _store(self, sums: Any, store: Store) -> None:
        t = self.tile
        strips = Strips(self.product, self.units, store, (t.m, t.n), t.split > 1)
        columns = math.gcd(t.n, STRIP)
        strips.allocate(t.threads // 32, columns)
        row = self.row + self.thread // 32 * ROWS
        with self.units.unrolled(t.n // columns) as i:
            place = row, self.column + i * columns
            strips.put(sums, i * (columns // COLUMNS * 4), self.thread, self.at, *place)


@dataclass(frozen=True, slots=True)
class Choice:
    """A tile, and an estimate of what it takes."""

    seconds: float
    tile: Tile


def tiles(product: Product, device: Device) -> list[Choice]:
    """The tiles that fit the device, the best by estimate first; none where no grid is large enough."""
    found = []
    for tile in TILES:
        for split in SPLITS:
            if (split == 1 or split * ROW * 4 <= product.k) and product.batch * split <= LARGEST_GRID:
                made = replace(tile, split=split)
                if made.shared_bytes <= device.shared_per_block:
                    found.append(Choice(seconds(product, made, device), made))
    return sorted(found, key=lambda choice: choice.seconds)


def seconds(product: Product, tile: Tile, device: Device) -> float:
    """An estimate: rounds of blocks, each bound by the cores, by the second-level cache, or by waiting for it."""
    assert product.kind is not None
    blocks = product.batch * math.ceil(product.m / tile.m) * math.ceil(product.n / tile.n) * tile.split
    together = max(1, min(math.ceil(blocks / device.multiprocessors), tile.resident(device)))
    rounds = math.ceil(blocks / (device.multiprocessors * together))
    rate = device.rates[product.kind] / device.multiprocessors / CLOCK
    cores = together * 2 * tile.m * tile.n * ROW / (rate * math.sqrt(min(1.0, tile.n / 128)))  # narrow ones read more
    fetched = together * 2 * tile.size / 2 / 40
    # every chunk is an instruction of 32 threads with some 12 for its address
    issued = together * tile.size / CHUNK / 32 * 12 / 4
    terms = (cores, fetched, issued, 800.0 / (tile.stages - 2))
    slices = math.ceil(math.ceil(product.k / ROW) / tile.split)
    cycles = rounds * ((slices + 1) * (max(terms) + sum(terms) / 8) + 1500)
    return cycles / CLOCK + parts_of.seconds(product, tile.split, device.bandwidth)
