"""GEMMs on Hopper's tensor cores: the four warps of a warpgroup multiply, and read both operands from shared memory.

Operands lie in rows of 64 elements along k, 128 bytes, whose eight chunks of 16 bytes are permuted by the row's last
three bits, as the instruction expects ("128B swizzle", K-major): copies and reads then meet every bank once. Slices are
copied asynchronously into a ring of stages; while one is multiplied, the one before may still be, and others arrive.

Only operands that can be copied so, 16 bytes along k at a time, are computed this way; the others are left to `mma`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from tvm import tirx
from tvm.ir import Expr
from tvm.script.ir_builder import tirx as T

from graphopt.targets.common.kernels.blocks import const
from graphopt.targets.common.kernels.guards import inside, when
from graphopt.targets.gpu.devices import LARGEST_GRID, GpuSpec
from graphopt.targets.gpu.kernels.gemm import grids
from graphopt.targets.gpu.kernels.gemm.access import AccessPattern
from graphopt.targets.gpu.kernels.gemm.epilogue_store import COLUMNS, ROWS, EpilogueStore
from graphopt.targets.gpu.kernels.gemm.grids import Timed
from graphopt.targets.gpu.kernels.gemm.mma import access_patterns
from graphopt.targets.gpu.kernels.gemm.product import Gemm
from graphopt.targets.gpu.kernels.gemm.split_k import SPLITS, Store
from graphopt.targets.gpu.kernels.gemm.warpgroups import CHUNK, DEPTH, GROUP_ROWS, Units
from graphopt.targets.gpu.waves import (
    CLOCK,
    L2_COPY_BYTES,
    RESERVED_SHARED_BYTES,
    adding_seconds,
    overlapped,
    tensor_core_rate,
    waves,
)

ROW = 64
"""Elements of a row in shared memory, and the depth of a slice."""

STRIP = 64
"""Columns of results per strip of the epilogue, at most."""


@dataclass(frozen=True, slots=True)
class Tile:
    """A block computes m x n results in slices of 64; four warps take 64 rows of it. Written "128x256x64^4".

    `split` and `stream` are those of `mma_tile.Tile`.
    """

    m: int
    n: int
    stages: int
    split: int = 1
    stream: int = 0

    @property
    def threads(self) -> int:
        """Threads per block."""
        return self.m // GROUP_ROWS * 128

    @property
    def size(self) -> int:
        """Elements of a stage."""
        return (self.m + self.n) * ROW

    @property
    def shared_bytes(self) -> int:
        """Bytes of shared memory that the stages take."""
        return 2 * self.stages * self.size

    @property
    def registers(self) -> int:
        """Registers per thread: sums, and some 64 for addresses."""
        return self.n // 2 + 64

    def resident(self, device: GpuSpec) -> int:
        """Resident blocks on a multiprocessor."""
        of_shared = device.shared_per_multiprocessor // (self.shared_bytes + RESERVED_SHARED_BYTES)
        return max(1, min(device.registers // (self.threads * self.registers), of_shared))

    def __str__(self) -> str:
        """The tile as it is written."""
        split = f"*{self.split}" if self.split > 1 else f"~{self.stream}" if self.stream else ""
        return f"{self.m}x{self.n}x{ROW}^{self.stages}{split}"


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


def possible(gemm: Gemm) -> bool:
    """Whether both operands are fp16 or bf16 in memory, contiguous along k in chunks of 16 bytes, all of it summed."""
    if gemm.kind not in ("float16", "bfloat16") or gemm.ragged is not None:
        return False
    return all(access.contiguous(True, CHUNK) and access.plain(gemm.kind) for access in access_patterns(gemm))


def emit(gemm: Gemm, tile: Tile, units: Units, device: GpuSpec) -> tirx.PrimFunc:
    """The function that computes `gemm` with `tile` on `units`."""
    return _Template(gemm, tile, units).function(device)


class _Template:
    def __init__(self, gemm: Gemm, tile: Tile, units: Units) -> None:
        self.gemm, self.tile, self.units = gemm, tile, units
        self.left, self.right = access_patterns(gemm)

    @property
    def extents(self) -> tuple[int, int]:
        """Extents of a tile, along m and n."""
        return self.tile.m, self.tile.n

    @property
    def threads(self) -> int:
        """Threads per block."""
        return self.tile.threads

    @property
    def registers(self) -> int:
        """Sums per thread, each in a register."""
        return self.tile.n // 2

    @property
    def slices(self) -> int:
        """Slices that all of k takes."""
        return math.ceil(self.gemm.k / ROW)

    def function(self, device: GpuSpec) -> tirx.PrimFunc:
        """The GEMM's function."""
        return grids.function(self, self.tile.split, self.tile.stream, self.tile.resident(device))

    def begin(self, thread: Expr) -> tirx.Buffer:
        """Begin a kernel that multiplies: allocate its buffers, and return that of the sums."""
        t, units = self.tile, self.units
        self.thread = thread
        units.begin(thread, t.threads)
        self.shared = T.alloc_buffer((t.stages * t.size,), units.dtype, scope=units.scope)
        units.describe(self.shared)
        return T.alloc_buffer((self.registers,), self.gemm.dtype, scope="local")

    def place(self, at: Expr, batch: Expr, row: Expr, column: Expr) -> None:
        """Set the tile's place: the first argument of what stores results, the batch, the first row and column."""
        self.at, self.batch, self.row, self.column = at, batch, row, column

    def multiply(self, sums: tirx.Buffer, first: Expr | int, count: Expr | int) -> None:
        """sums = the product of `count` slices from `first` on, which pass through the ring of stages."""
        t, units = self.tile, self.units
        with units.unrolled(self.registers) as i:
            T.buffer_store(sums, const(0, self.gemm.dtype), [i])
        for ahead in range(t.stages - 2):
            self._copy(first + ahead, ahead, count > ahead)
        with T.serial(0, count) as i:
            units.wait(t.stages - 3)
            units.publish()
            T.evaluate(T.tvm_storage_sync("shared"))  # the slice before the last is multiplied, by all warps
            self._multiply(sums, i % t.stages)
            following = i + (t.stages - 2)
            self._copy(first + following, following % t.stages, following < count)
            units.settle(sums, 1)
        units.settle(sums, 0)
        units.wait(0)

    def _copy(self, part: Expr | int, stage: Expr | int, condition: Expr | bool) -> None:
        """Begin the copies of a slice; a group is closed also where there is none, so that groups count slices."""
        t = self.tile
        if condition is not False:
            with when(None if condition is True else condition):
                self._side(self.left, self.row, t.m, part, stage * t.size)
                self._side(self.right, self.column, t.n, part, stage * t.size + t.m * ROW)
        self.units.commit()

    def _side(self, access: AccessPattern, start: Expr, extent: int, part: Expr | int, base: Expr | int) -> None:
        total, threads = extent * (ROW // CHUNK), self.tile.threads
        for turn in range(math.ceil(total / threads)):
            item = self.thread + turn * threads
            row, piece = item // (ROW // CHUNK), item % (ROW // CHUNK)
            place, depth = start + row, part * ROW + piece * CHUNK
            chunk = access.chunk(self.batch, place, depth)
            assert chunk is not None
            exists = inside((place, access.size, extent), (depth, access.depth, ROW * self.tile.split))
            conditions = [condition for condition in (exists, chunk.condition) if condition is not None]
            swizzled = tirx.bitwise_xor(piece, row % 8)
            with when(None if (turn + 1) * threads <= total else item < total):
                at = base + row * ROW + swizzled * CHUNK
                self.units.copy(self.shared, at, chunk, tirx.all(*conditions) if conditions else None)

    def _multiply(self, sums: tirx.Buffer, stage: Expr) -> None:
        """Begin to multiply one slice."""
        t, units = self.tile, self.units
        left = stage * t.size + self.thread // 128 * (GROUP_ROWS * ROW)
        right = stage * t.size + t.m * ROW
        units.open()
        for step in range(ROW // DEPTH):
            units.multiply_group(sums, t.n, self.shared, left + step * DEPTH, right + step * DEPTH)
        units.close()

    def store(self, sums: tirx.Buffer, thread: Expr, store: Store, split: bool) -> None:
        """Store the sums through shared memory, in rows of parts of k where they are `split`."""
        t = self.tile
        T.evaluate(T.tvm_storage_sync("shared"))  # strips lie where stages did
        epilogue = EpilogueStore(self.gemm, self.units, store, (t.m, t.n), split)
        columns = math.gcd(t.n, STRIP)
        epilogue.allocate(t.threads // 32, columns)
        row = self.row + thread // 32 * ROWS
        with self.units.unrolled(t.n // columns) as i:
            place = row, self.column + i * columns
            epilogue.put(sums, i * (columns // COLUMNS * 4), thread, self.at, *place)


def tiles(gemm: Gemm, device: GpuSpec) -> list[Timed[Tile]]:
    """The tiles that fit the device, the best by estimate first; none where no grid is large enough."""
    candidates = []
    for tile in (tile for tile in TILES if tile.shared_bytes <= device.shared_per_block):
        for split in SPLITS:
            if (split == 1 or split * ROW * 4 <= gemm.k) and gemm.batch * split <= LARGEST_GRID:
                candidate = replace(tile, split=split)
                candidates.append(Timed(seconds(gemm, candidate, device), candidate))
        shared_out = _stream_k(gemm, tile, device)
        if stream := shared_out.streams():
            cycles = shared_out.streamed(_step(gemm, tile, tile.resident(device), device))
            candidates.append(Timed(cycles / CLOCK + shared_out.added(device.bandwidth), replace(tile, stream=stream)))
    return sorted(candidates, key=lambda timed: timed.seconds)


def _stream_k(gemm: Gemm, tile: Tile, device: GpuSpec) -> grids.StreamK:
    """The tiles and slices that Stream-K would share."""
    rows, columns = grids.counts(gemm, (tile.m, tile.n))
    slices, at_once = math.ceil(gemm.k / ROW), device.multiprocessors * tile.resident(device)
    return grids.StreamK(gemm.batch * rows * columns, slices, 4 * tile.m * tile.n, at_once)


def seconds(gemm: Gemm, tile: Tile, device: GpuSpec) -> float:
    """An estimate: waves of resident blocks."""
    blocks = gemm.batch * math.ceil(gemm.m / tile.m) * math.ceil(gemm.n / tile.n) * tile.split
    grid = waves(blocks, tile.resident(device), device)
    slices = math.ceil(math.ceil(gemm.k / ROW) / tile.split)
    cycles = grid.count * ((slices + 1) * _step(gemm, tile, grid.resident_blocks, device) + grids.STARTED)
    return cycles / CLOCK + adding_seconds(tile.split, gemm.batch * gemm.m * gemm.n, device)


def _step(gemm: Gemm, tile: Tile, resident_blocks: int, device: GpuSpec) -> float:
    """Cycles of a slice: bound by the cores, by the second-level cache, by its instructions, or by waiting for it."""
    assert gemm.kind is not None
    rate = tensor_core_rate(gemm.kind, device) * math.sqrt(min(1.0, tile.n / 128))  # narrow tiles read more
    cores = resident_blocks * 2 * tile.m * tile.n * ROW / rate
    fetched = resident_blocks * 2 * tile.size / L2_COPY_BYTES
    # every chunk is an instruction of 32 threads with some 12 for its address
    issued = resident_blocks * tile.size / CHUNK / 32 * 12 / 4
    return overlapped(cores, fetched, issued, 800.0 / (tile.stages - 2))
