"""GEMMs on CUDA cores: a block's tile of both operands in shared memory, a thread's tile in registers.

While a block multiplies one slice of k, the next one is already in flight from memory into registers; it goes into the
other half of the shared memory afterwards, so that one barrier a slice is enough.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from tvm import tirx
from tvm.ir import Expr
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from graphopt.program.program import ITEM_BYTES
from graphopt.targets.common.kernels.blocks import const
from graphopt.targets.common.kernels.guards import inside, when
from graphopt.targets.gpu.code import handwritten
from graphopt.targets.gpu.devices import LARGEST_GRID, GpuSpec
from graphopt.targets.gpu.kernels.gemm import split_k as parts_of
from graphopt.targets.gpu.kernels.gemm.access import AccessPattern, Element
from graphopt.targets.gpu.kernels.gemm.product import Gemm
from graphopt.targets.gpu.kernels.gemm.split_k import SPLITS, Store
from graphopt.targets.gpu.waves import CLOCK, INSTRUCTIONS, L2_LOAD_BYTES, adding_seconds, overlapped, waves

VECTOR = 4
"""Elements of a load from shared memory."""


@dataclass(frozen=True, slots=True)
class Tile:
    """A block computes m x n results in slices of k; a thread rows x columns of them. Written "128x128x8/8x8".

    With `split` more than 1, that many blocks share the slices of one tile, and a second kernel adds up ("...*4").
    """

    m: int
    n: int
    k: int
    rows: int
    columns: int
    split: int = 1

    @property
    def threads(self) -> int:
        """Threads per block."""
        return self.m // self.rows * (self.n // self.columns)

    @property
    def resident(self) -> int:
        """Resident blocks, by 65536 registers: sums, operands of two steps, and some 48 for addresses."""
        registers = self.rows * self.columns + 2 * (self.rows + self.columns) + 48
        return max(1, 65536 // (self.threads * registers))

    def __str__(self) -> str:
        """The tile as it is written."""
        split = f"*{self.split}" if self.split > 1 else ""
        return f"{self.m}x{self.n}x{self.k}/{self.rows}x{self.columns}{split}"


TILES = (
    Tile(128, 128, 8, 8, 8),
    Tile(128, 64, 8, 8, 4),
    Tile(64, 128, 8, 4, 8),
    Tile(64, 64, 8, 4, 4),
    Tile(64, 32, 8, 4, 4),
    Tile(32, 64, 8, 4, 4),
    Tile(32, 32, 8, 4, 4),
    Tile(16, 64, 8, 4, 4),
    Tile(16, 128, 8, 4, 4),
    Tile(8, 128, 8, 2, 4),
    Tile(4, 128, 8, 1, 4),
)


def tiles(gemm: Gemm, device: GpuSpec) -> list[Tile]:
    """The tiles that fit the device, the best by estimate first; none where the grid would be too large."""
    fitting = [
        replace(tile, split=split)
        for tile in TILES
        for split in SPLITS
        if tile.threads <= device.threads_per_block
        and 2 * ITEM_BYTES[gemm.dtype] * tile.k * (tile.m + tile.n + 2 * VECTOR) <= device.shared_per_block
        and (split == 1 or split * tile.k * 4 <= gemm.k)
        and gemm.fits(tile.n, tile.k, split)
        and max(gemm.batch * split, math.ceil(gemm.m / tile.m)) <= LARGEST_GRID
    ]
    return sorted(fitting, key=lambda tile: seconds(gemm, tile, device))


def seconds(gemm: Gemm, tile: Tile, device: GpuSpec) -> float:
    """An estimate: waves of blocks, each bound by arithmetic, by the second-level cache, or by waiting for it."""
    blocks = gemm.batch * math.ceil(gemm.m / tile.m) * math.ceil(gemm.n / tile.n) * tile.split
    grid = waves(blocks, tile.resident, device)
    arithmetic = grid.resident_blocks * tile.k * tile.threads * tile.rows * tile.columns / INSTRUCTIONS
    # a warp's vector of 32 words takes two cycles
    shared = grid.resident_blocks * tile.k * tile.threads * (tile.rows + tile.columns) / (32 * VECTOR) * 2
    fetched = grid.resident_blocks * tile.k * (tile.m + tile.n) * 4 / L2_LOAD_BYTES
    slices = math.ceil(math.ceil(gemm.summed / tile.k) / tile.split)
    cycles = grid.count * (slices + 2) * overlapped(max(arithmetic, shared), fetched, 600.0)
    return cycles / CLOCK + adding_seconds(tile.split, gemm.batch * gemm.m * gemm.n, device)


def emit(gemm: Gemm, tile: Tile) -> tirx.PrimFunc:
    """The function that computes `gemm` with `tile`."""
    return _Template(gemm, tile).function()


class _Template:
    def __init__(self, gemm: Gemm, tile: Tile) -> None:
        self.gemm, self.tile = gemm, tile
        self.left = _SimtOperand(self, gemm.left, True)
        self.right = _SimtOperand(self, lambda b, n, k: gemm.right(b, k, n), False)

    def function(self) -> tirx.PrimFunc:
        """The GEMM's function."""
        p, t = self.gemm, self.tile
        with IRBuilder() as builder:
            with T.prim_func(s_tir=True):
                T.func_name("main")
                parts_of.split(p, t.split, t.threads, self._tiles)
            return handwritten(p.function, builder.get().body, t.resident)

    def _tiles(self, store: Store) -> None:
        """The kernel whose blocks compute tiles."""
        p, t = self.gemm, self.tile
        with (
            T.launch_thread("blockIdx.x", math.ceil(p.n / t.n)) as bx,
            T.launch_thread("blockIdx.y", math.ceil(p.m / t.m)) as by,
            T.launch_thread("blockIdx.z", p.batch * t.split) as bz,
            T.launch_thread("threadIdx.x", t.threads) as thread,
        ):
            self.at: Expr = bz
            self.batch: Expr = bz if t.split == 1 else bz // t.split
            self.part: Expr | int = 0 if t.split == 1 else bz % t.split
            self.row, self.column, self.thread = by * t.m, p.column(bx, t.n), thread
            across = t.n // t.columns
            self.own_row, self.own_column = thread // across, thread % across
            self._body(store)

    def _body(self, store: Store) -> None:
        p, t = self.gemm, self.tile
        sums = T.alloc_buffer((t.rows * t.columns,), p.dtype, scope="local")
        with T.unroll(0, t.rows * t.columns) as i:
            T.buffer_store(sums, const(0, p.dtype), [i])
        for side in (self.left, self.right):
            side.allocate()
        if p.ragged is None:
            slices = math.ceil(math.ceil(p.k / t.k) / t.split)
            self._slices(sums, self.part * slices, slices)
        else:
            first, count = p.ragged.slices(self.column, t.k)
            # without any slice, one that exists is fetched and not multiplied: all threads meet at the barrier
            first = tirx.min(first, p.k // t.k - 1)
            self._slices(sums, first, count, tirx.max(count - 1, 0), count > 0)
        self._store(sums, store)

    def _slices(
        self,
        sums: tirx.Buffer,
        first: Expr | int,
        count: Expr | int,
        others: Expr | int | None = None,
        some: Expr | None = None,
    ) -> None:
        """Add up `count` slices of k; `others` are all but one, and `some` says whether there is one."""
        others = count - 1 if others is None else others
        for side in (self.left, self.right):
            side.fetch(first)
            side.put(0)
        T.evaluate(T.tvm_storage_sync("shared"))
        if not isinstance(others, int) or others:
            with T.serial(0, others) as part:
                for side in (self.left, self.right):
                    side.fetch(first + part + 1)
                self._multiply(sums, part % 2)
                for side in (self.left, self.right):
                    side.put((part + 1) % 2)
                T.evaluate(T.tvm_storage_sync("shared"))
        with when(some):
            self._multiply(sums, (count - 1) % 2)

    def _multiply(self, sums: tirx.Buffer, half: Expr | int) -> None:
        """One slice of k: operands of a step into registers, then all their products."""
        t = self.tile
        with T.unroll(0, t.k) as depth:
            a = self.left.registers(half, depth, self.own_row, t.rows)
            b = self.right.registers(half, depth, self.own_column, t.columns)
            with T.unroll(0, t.rows) as i, T.unroll(0, t.columns) as j:
                T.buffer_store(sums, sums[i * t.columns + j] + a[i] * b[j], [i * t.columns + j])

    def _store(self, sums: tirx.Buffer, store: Store) -> None:
        p, t = self.gemm, self.tile
        with T.unroll(0, t.rows) as i, T.unroll(0, t.columns) as j:
            row = self.row + _place(i, self.own_row, t.m // t.rows, t.rows)
            column = self.column + _place(j, self.own_column, t.n // t.columns, t.columns)
            with when(p.exists(row, column, (t.m, t.n))):
                T.buffer_store(*store(self.at, row, column, sums[i * t.columns + j]))


class _SimtOperand:
    """One operand: its slice in shared memory [2, k, extent], and how threads fetch it."""

    def __init__(self, template: _Template, element: Element, left: bool) -> None:
        p, t = template.gemm, template.tile
        self.template, self.is_left = template, left
        self.access = AccessPattern(element, p.m if left else p.n, p.k, p.index)
        self.extent, self.size, self.threads = (t.m, p.m, t.threads) if left else (t.n, p.n, t.threads)
        self.along_depth, self.vector = self._access()
        self.inner = t.k if self.along_depth else self.extent
        self.total = t.k * self.extent // self.vector
        self.turns = math.ceil(self.total / self.threads)
        self.stride = self.extent + (VECTOR if self.along_depth else 0)  # a transposing store then spreads over banks

    def _access(self) -> tuple[bool, int]:
        """Whether neighbours along k are contiguous in memory, and how many elements one load may take."""
        for along_depth in (False, True):
            extent = self.template.tile.k if along_depth else self.extent
            if extent % VECTOR == 0 and self.access.contiguous(along_depth, VECTOR):
                return along_depth, VECTOR
        return not self.access.neighbours(False) and self.access.neighbours(True), 1

    def allocate(self) -> None:
        """Allocate shared memory, and the registers on the way there."""
        t, dtype = self.template.tile, self.template.gemm.dtype
        self.shared = T.alloc_buffer((2 * t.k * self.stride,), dtype, scope="shared")  # flat: TVM drops padding of rows
        self.waiting = T.alloc_buffer((self.turns * self.vector,), dtype, scope="local")

    def _each(self) -> Iterator[tuple[int, Expr, Expr]]:
        """For each turn of a thread: its number, and the first place and depth that the thread fetches."""
        for turn in range(self.turns):
            item = self.template.thread + turn * self.threads
            inner = item % (self.inner // self.vector) * self.vector
            outer = item // (self.inner // self.vector)
            yield turn, *((outer, inner) if self.along_depth else (inner, outer))

    def fetch(self, part: Expr | int) -> None:
        """Load this thread's elements of slice `part` into registers."""
        w = self.template
        start = w.row if self.is_left else w.column
        for turn, place, depth in self._each():
            at, k = start + place, part * w.tile.k + depth
            exists = inside((at, self.size, self.extent), (k, w.gemm.k, w.tile.k * w.tile.split))
            with when(self._idle(turn)), T.vectorized(0, self.vector) as lane:
                value, condition = self._loaded(at, k, lane)
                conditions = [each for each in (exists, condition) if each is not None]
                if conditions:
                    value = tirx.if_then_else(tirx.all(*conditions), value, const(0, w.gemm.dtype))
                T.buffer_store(self.waiting, value, [turn * self.vector + lane])

    def _loaded(self, place: Expr, depth: Expr, lane: Expr) -> tuple[Expr, Expr | None]:
        """The element `lane` behind the one at that place and depth, and the condition of all of a vector."""
        w = self.template
        if self.vector == 1:
            return self.access.element(w.batch, place, depth), None
        chunk = self.access.chunk(w.batch, place, depth)
        assert chunk is not None
        *outer, last = chunk.indices
        return chunk.source[(*outer, last + lane)].astype(w.gemm.dtype), chunk.condition

    def put(self, half: Expr | int) -> None:
        """Store the fetched elements into that half of the shared memory."""
        for turn, place, depth in self._each():
            with when(self._idle(turn)):
                if self.along_depth:
                    for lane in range(self.vector):
                        value = self.waiting[turn * self.vector + lane]
                        T.buffer_store(self.shared, value, [self._at(half, depth + lane, place)])
                else:
                    with T.vectorized(0, self.vector) as lane:
                        value = self.waiting[turn * self.vector + lane]
                        T.buffer_store(self.shared, value, [self._at(half, depth, place + lane)])

    def _at(self, half: Expr | int, depth: Expr, place: Expr) -> Expr:
        return (half * self.template.tile.k + depth) * self.stride + place

    def _idle(self, turn: int) -> Expr | None:
        """The condition of a turn that not all threads have work in; None if all have."""
        if (turn + 1) * self.threads <= self.total:
            return None
        return self.template.thread + turn * self.threads < self.total

    def registers(self, half: Expr | int, depth: Expr, own: Expr, count: int) -> tirx.Buffer:
        """Load a thread's `count` elements of one depth into registers."""
        elements = T.alloc_buffer((count,), self.template.gemm.dtype, scope="local")
        width = math.gcd(count, VECTOR)
        groups = self.extent // count
        for start in range(0, count, width):
            first = _place(start, own, groups, count)
            with T.vectorized(0, width) as lane:
                T.buffer_store(elements, self.shared[self._at(half, depth, first + lane)], [start + lane])
        return elements


def _place(i: Expr | int, own: Expr, groups: int, count: int) -> Expr:
    """Where element `i` of a thread's `count` lies in the tile: vectors of neighbouring threads are neighbours."""
    width = math.gcd(count, VECTOR)
    if isinstance(i, int):
        return i // width * (groups * width) + own * width + i % width
    return tirx.floordiv(i, width) * (groups * width) + own * width + tirx.floormod(i, width)
