"""GEMMs on tensor cores: a block's tile of both operands in shared memory, a warp's tile of sums in registers.

Slices of k are copied asynchronously into a ring of stages, so that some are in flight while one is multiplied; what
cannot be copied as it is (an operand that is computed, or lies scattered) goes through registers, one slice ahead. Sums
leave through shared memory, so that neighbouring threads store neighbouring results, with the epilogue applied.
"""

from __future__ import annotations

import math
from dataclasses import replace

from tvm import tirx
from tvm.ir import Expr
from tvm.script.ir_builder import tirx as T

from graphopt.targets.common.kernels.blocks import const
from graphopt.targets.common.kernels.guards import when
from graphopt.targets.gpu.devices import LARGEST_GRID, GpuSpec
from graphopt.targets.gpu.kernels.gemm import grids
from graphopt.targets.gpu.kernels.gemm.access import AccessPattern
from graphopt.targets.gpu.kernels.gemm.epilogue_store import COLUMNS, ROWS, EpilogueStore
from graphopt.targets.gpu.kernels.gemm.grids import Timed
from graphopt.targets.gpu.kernels.gemm.mma_operand import MmaOperand
from graphopt.targets.gpu.kernels.gemm.mma_tile import TILES, Tile
from graphopt.targets.gpu.kernels.gemm.product import Gemm
from graphopt.targets.gpu.kernels.gemm.split_k import SPLITS, Store
from graphopt.targets.gpu.kernels.gemm.tensor_cores import CHUNK_BYTES, Units
from graphopt.targets.gpu.waves import (
    CLOCK,
    INSTRUCTIONS,
    L2_COPY_BYTES,
    RESERVED_SHARED_BYTES,
    SHARED_BYTES,
    adding_seconds,
    overlapped,
    tensor_core_rate,
    waves,
)


def emit(gemm: Gemm, tile: Tile, units: Units) -> tirx.PrimFunc:
    """The function that computes `gemm` with `tile` on `units`."""
    return Template(gemm, tile, units).function()


def access_patterns(gemm: Gemm) -> tuple[AccessPattern, AccessPattern]:
    """How both operands lie in memory."""
    left = AccessPattern(gemm.left, gemm.m, gemm.k, gemm.index)
    right = AccessPattern(lambda b, n, k: gemm.right(b, k, n), gemm.n, gemm.k, gemm.index)
    return left, right


class Template:
    """Emits the function of one GEMM."""

    def __init__(
        self, gemm: Gemm, tile: Tile, units: Units, patterns: tuple[AccessPattern, AccessPattern] | None = None
    ) -> None:
        """Set up the template.

        Args:
            units: the instructions that it multiplies with.
            patterns: those of `gemm`, where templates of several tiles share them.
        """
        self.gemm, self.tile, self.units = gemm, tile, units
        left, right = patterns or access_patterns(gemm)
        self.left, self.right = MmaOperand(self, left, True), MmaOperand(self, right, False)
        self.sides = self.left, self.right
        self.across, self.down = tile.columns // COLUMNS, tile.rows // ROWS

    @property
    def shared_bytes(self) -> int:
        """Bytes of shared memory that the stages take."""
        return self.tile.stages * (self.left.size + self.right.size) * (CHUNK_BYTES // self.units.chunk)

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
        return self.down * self.across * 4

    @property
    def slices(self) -> int:
        """Slices that all of k takes."""
        return math.ceil(self.gemm.k / self.tile.k)

    def function(self) -> tirx.PrimFunc:
        """The GEMM's function."""
        return grids.function(self, self.tile.split, self.tile.stream, resident(self.tile))

    def begin(self, thread: Expr) -> tirx.Buffer:
        """Begin a kernel that multiplies: allocate its buffers, and return that of the sums."""
        t, units = self.tile, self.units
        self._lanes(thread)
        units.begin(thread, t.threads)
        self.shared = T.alloc_buffer((t.stages * (self.left.size + self.right.size),), units.dtype, scope=units.scope)
        for side in self.sides:
            side.allocate()
        return T.alloc_buffer((self.registers,), self.gemm.dtype, scope="local")

    def _lanes(self, thread: Expr) -> None:
        t = self.tile
        self.thread, self.lane, self.warp = thread, thread % 32, thread // 32
        self.own_row = self.warp % (t.m // t.rows) * t.rows
        self.own_column = self.warp // (t.m // t.rows) * t.columns

    def place(self, at: Expr, batch: Expr, row: Expr, column: Expr) -> None:
        """Set the tile's place: the first argument of what stores results, the batch, the first row and column."""
        self.at, self.batch, self.row, self.column = at, batch, row, column

    def multiply(self, sums: tirx.Buffer, first: Expr | int, count: Expr | int) -> None:
        """sums = the product of `count` slices from `first` on, which pass through the ring of stages."""
        t, units = self.tile, self.units
        with units.unrolled(self.registers) as i:
            T.buffer_store(sums, const(0, self.gemm.dtype), [i])
        for ahead in range(t.stages - 1):
            self._copy(first + ahead, ahead, count > ahead)
        some = None if self.gemm.ragged is None else count > 0
        self._fetch(first, some)
        self._put(0, some)
        with T.serial(0, count) as i:
            units.wait(t.stages - 2)
            T.evaluate(T.tvm_storage_sync("shared"))
            self._copy(first + i + (t.stages - 1), (i + (t.stages - 1)) % t.stages, i + (t.stages - 1) < count)
            more = i + 1 < count
            self._fetch(first + i + 1, more)
            self._multiply(sums, i % t.stages)
            self._put((i + 1) % t.stages, more)
        units.wait(0)

    def _bases(self, stage: Expr | int) -> tuple[Expr | int, Expr | int]:
        start = stage * (self.left.size + self.right.size)
        return start, start + self.left.size

    def _copy(self, part: Expr | int, stage: Expr | int, condition: Expr | bool) -> None:
        """Begin the copies of a slice; a group is closed also where there is none, so that groups count slices."""
        if condition is not False:
            with when(None if condition is True else condition):
                for side, base in zip(self.sides, self._bases(stage), strict=True):
                    if side.asynchronous:
                        side.copy(part, base)
        self.units.commit()

    def _fetch(self, part: Expr | int, condition: Expr | None) -> None:
        with when(condition):
            for side in self.sides:
                if not side.asynchronous:
                    side.fetch(part)

    def _put(self, stage: Expr | int, condition: Expr | None) -> None:
        with when(condition):
            for side, base in zip(self.sides, self._bases(stage), strict=True):
                if not side.asynchronous:
                    side.put(base)

    def _multiply(self, sums: tirx.Buffer, stage: Expr) -> None:
        """Multiply one slice of k."""
        t, units = self.tile, self.units
        left, right = self._bases(stage)
        with units.unrolled(t.k // (2 * units.chunk)) as step:
            a = self.left.fragments(left, step, self.own_row, t.rows)
            b = self.right.fragments(right, step, self.own_column, t.columns)
            with units.unrolled(self.down) as i, units.unrolled(self.across) as j:
                units.multiply(sums, (i * self.across + j) * 4, a, i * 4, b, j * 2)

    def store(self, sums: tirx.Buffer, thread: Expr, store: Store, split: bool) -> None:
        """Store the sums through shared memory, in rows of parts of k where they are `split`."""
        t = self.tile
        self._lanes(thread)
        T.evaluate(T.tvm_storage_sync("shared"))  # strips lie where stages did
        epilogue = EpilogueStore(self.gemm, self.units, store, (t.m, t.n), split)
        epilogue.allocate(t.warps, t.columns)
        with self.units.unrolled(self.down) as i:
            place = self.row + self.own_row + i * ROWS, self.column + self.own_column
            epilogue.put(sums, i * self.across * 4, thread, self.at, *place)


def resident(tile: Tile) -> int:
    """Resident blocks, as far as registers go."""
    return max(1, 65536 // (tile.threads * tile.registers))


def tiles(gemm: Gemm, device: GpuSpec, units: Units) -> list[Timed[Tile]]:
    """The tiles that fit the device, the best by estimate first; none where the grid would be too large."""
    candidates = []
    patterns = access_patterns(gemm)
    for tile in (replace(tile, k=tile.k * units.chunk // 8) for tile in TILES):
        template = Template(gemm, tile, units, patterns)
        if tile.threads > device.threads_per_block or template.shared_bytes > device.shared_per_block:
            continue
        for split in SPLITS:
            enough = split == 1 or split * tile.k * 4 <= gemm.k
            if enough and gemm.fits(tile.n, tile.k, split) and gemm.batch * split <= LARGEST_GRID:
                candidates.append(Timed(seconds(template, split, device), replace(tile, split=split)))
        if gemm.ragged is None and (stream := stream_k(template, device).streams()):
            candidates.append(Timed(streamed_seconds(template, device), replace(tile, stream=stream)))
    return sorted(candidates, key=lambda timed: timed.seconds)


def stream_k(template: Template, device: GpuSpec) -> grids.StreamK:
    """The tiles and slices that Stream-K would share."""
    rows, columns = grids.counts(template.gemm, template.extents)
    kept = 4 * template.registers * template.threads
    return grids.StreamK(
        template.gemm.batch * rows * columns,
        template.slices,
        kept,
        device.multiprocessors * _fitting(template, device),
    )


def streamed_seconds(template: Template, device: GpuSpec) -> float:
    """An estimate: full waves of tiles, and the partial last wave by Stream-K."""
    shared_out = stream_k(template, device)
    return shared_out.streamed(_step(template, _fitting(template, device), device)) / CLOCK + shared_out.added(
        device.bandwidth
    )


def seconds(template: Template, split: int, device: GpuSpec) -> float:
    """An estimate: waves of resident blocks."""
    p, t = template.gemm, template.tile
    blocks = p.batch * math.ceil(p.m / t.m) * math.ceil(p.n / t.n) * split
    grid = waves(blocks, _fitting(template, device), device)
    slices = math.ceil(math.ceil(p.summed / t.k) / split)
    cycles = grid.count * ((slices + 1) * _step(template, grid.resident_blocks, device) + grids.STARTED)
    return cycles / CLOCK + adding_seconds(split, p.batch * p.m * p.n, device)


def _fitting(template: Template, device: GpuSpec) -> int:
    of_shared = device.shared_per_multiprocessor // (template.shared_bytes + RESERVED_SHARED_BYTES)
    return max(1, min(resident(template.tile), of_shared))


def _step(template: Template, resident_blocks: int, device: GpuSpec) -> float:
    """Cycles of a slice: bound by the cores, by shared memory, by the cache, or by waiting for it."""
    t, units = template.tile, template.units
    size = CHUNK_BYTES // units.chunk
    reached = HOPPER_MMA if device.capability >= 90 else 1.0
    cores = resident_blocks * 2 * t.m * t.n * t.k / (tensor_core_rate(units.kind, device) * reached)
    shared = resident_blocks * size * t.k * (t.warps * (t.rows + t.columns) + t.m + t.n) / SHARED_BYTES
    fetched = resident_blocks * size * t.k * (t.m + t.n) / L2_COPY_BYTES
    # some 20 instructions for an element that is fetched by itself, fewer for one of a vector
    computed = sum(
        resident_blocks * 20 * side.extent * t.k / side.vector / INSTRUCTIONS
        for side in template.sides
        if not side.asynchronous
    )
    return overlapped(cores, shared, fetched + computed, 700.0 / (t.stages - 1))  # the cache is 700 cycles away


HOPPER_MMA = 0.62
"""The share of Hopper's peak that instructions of a single warp reach: Hopper's own ones (wgmma) are for four warps.

Source: Luo and others, Benchmarking and Dissecting the Nvidia Hopper GPU Architecture (2024).
"""
