"""How blocks share the tiles of a GEMM: a tile each, a part of a tile's k each (split-K), or equal shares (Stream-K).

Where tiles are no multiple of the blocks that a device runs at a time, the last wave leaves some of it idle. Stream-K
then shares the tiles of that wave: every block takes as many slices of k, going on from one tile into the next, and
keeps its sums in memory as its registers hold them; blocks of a second kernel add up the parts of a tile, and store it.
Source: M. Osama, D. Merrill and others, Stream-K (2023), arXiv:2301.03598.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Generic, Protocol, TypeVar

from tvm import tirx
from tvm.ir import Expr
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from graphopt.targets.common.kernels.blocks import const
from graphopt.targets.common.kernels.guards import when
from graphopt.targets.gpu.code import handwritten
from graphopt.targets.gpu.kernels.gemm import split_k as parts_of
from graphopt.targets.gpu.kernels.gemm.product import Gemm
from graphopt.targets.gpu.kernels.gemm.split_k import Store

RASTER = 8
"""Rows of tiles per group of neighbouring blocks, which find each other's operands in the cache."""


class Blocks(Protocol):
    """What a kernel template does inside a block."""

    gemm: Gemm

    @property
    def extents(self) -> tuple[int, int]:
        """Extents of a tile, along m and n."""

    @property
    def threads(self) -> int:
        """Threads per block."""

    @property
    def registers(self) -> int:
        """Sums per thread, each in a register."""

    @property
    def slices(self) -> int:
        """Slices that all of k takes."""

    def begin(self, thread: Expr) -> tirx.Buffer:
        """Begin a kernel that multiplies: allocate its buffers, and return that of the sums."""

    def place(self, at: Expr, batch: Expr, row: Expr, column: Expr) -> None:
        """Set the tile's place: the first argument of what stores results, the batch, the first row and column."""

    def multiply(self, sums: tirx.Buffer, first: Expr | int, count: Expr | int) -> None:
        """sums = the product of `count` slices from `first` on; an expression is not 0 but in a ragged GEMM."""

    def store(self, sums: tirx.Buffer, thread: Expr, store: Store, split: bool) -> None:
        """Store the sums, in rows of parts of k where they are `split`."""


def function(template: Blocks, split: int, stream: int, resident: int) -> tirx.PrimFunc:
    """The function of a GEMM, whose blocks compute tiles, or parts of them.

    Args:
        split: blocks that share a tile (split-K); 1 for whole tiles.
        stream: Stream-K: blocks that share the partial last wave; 0 without.
        resident: how many blocks should be resident on a multiprocessor.
    """
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("main")
            if stream:
                streamed(template, stream)
            else:
                parts_of.split(template.gemm, split, template.threads, partial(parts, template, split))
        return handwritten(template.gemm.function, builder.get().body, resident)


def raster(block: Expr, rows: int, columns: int) -> tuple[Expr, Expr]:
    """The row and the column of a block's tile: `RASTER` rows of tiles, or fewer, column by column."""
    group = max(count for count in range(1, RASTER + 1) if rows % count == 0)
    return block // (group * columns) * group + block % group, block // group % columns


def counts(gemm: Gemm, extents: tuple[int, int]) -> tuple[int, int]:
    """Tiles along m and n."""
    return math.ceil(gemm.m / extents[0]), math.ceil(gemm.n / extents[1])


def parts(template: Blocks, split: int, store: Store) -> None:
    """A kernel in which every block has a tile, or one of `split` parts of one."""
    rows, columns = counts(template.gemm, template.extents)
    own = math.ceil(template.slices / split)
    with (
        T.launch_thread("blockIdx.x", rows * columns) as block,
        T.launch_thread("blockIdx.z", template.gemm.batch * split) as bz,
        T.launch_thread("threadIdx.x", template.threads) as thread,
    ):
        sums = template.begin(thread)
        row, column = raster(block, rows, columns)
        batch, part = (bz, 0) if split == 1 else (bz // split, bz % split)
        first_column = template.gemm.column(column, template.extents[1])
        template.place(bz, batch, row * template.extents[0], first_column)
        ragged = template.gemm.ragged
        depth = template.gemm.k // template.slices
        template.multiply(sums, *((part * own, own) if ragged is None else ragged.slices(first_column, depth)))
        template.store(sums, thread, store, split > 1)


def streamed(template: Blocks, blocks: int) -> None:
    """Stream-K: full waves of `blocks` tiles, a kernel that shares the other tiles, one that adds up their parts."""
    gemm, slices = template.gemm, template.slices
    rows, columns = counts(gemm, template.extents)
    tiles = gemm.batch * rows * columns
    full_tiles = tiles // blocks * blocks
    if full_tiles:
        with (
            T.launch_thread("blockIdx.x", full_tiles) as block,
            T.launch_thread("threadIdx.x", template.threads) as thread,
        ):
            sums = template.begin(thread)
            _place(template, block, rows, columns)
            template.multiply(sums, 0, slices)
            template.store(sums, thread, gemm.store, False)
    total = (tiles - full_tiles) * slices
    if not total:
        return
    share = math.ceil(total / blocks)  # of less than a tile: so that a block meets two at most
    size = template.registers * template.threads
    kept = T.alloc_buffer((2 * blocks * size,), gemm.dtype, scope="global")
    with T.launch_thread("blockIdx.x", blocks) as block, T.launch_thread("threadIdx.x", template.threads) as thread:
        sums = template.begin(thread)
        start, end = block * share, tirx.min((block + 1) * share, total)
        with T.serial(0, 2) as turn:
            following = (start // slices + 1) * slices
            begin = tirx.Select(turn == 0, start, following)
            stop = tirx.min(end, (begin // slices + 1) * slices)
            with when(begin < stop):
                T.evaluate(T.tvm_storage_sync("shared"))  # the shared memory of the turn before has been read
                _place(template, begin // slices + full_tiles, rows, columns)
                template.multiply(sums, begin % slices, stop - begin)
                with T.unroll(0, template.registers) as i:
                    at = (block * 2 + turn) * size + i * template.threads + thread
                    T.buffer_store(kept, sums[i], [at])
    _add_parts(template, kept, (full_tiles, tiles - full_tiles), share, (rows, columns))


def _add_parts(
    template: Blocks, kept: tirx.Buffer, tiles: tuple[int, int], share: int, across: tuple[int, int]
) -> None:
    """The kernel that adds up the parts of every tile: from `tiles[0]` on, `tiles[1]` of them."""
    size, slices, dtype = template.registers * template.threads, template.slices, template.gemm.dtype
    with (
        T.launch_thread("blockIdx.x", tiles[1]) as tile,
        T.launch_thread("threadIdx.x", template.threads) as thread,
    ):
        sums = T.alloc_buffer((template.registers,), dtype, scope="local")
        with T.unroll(0, template.registers) as i:
            T.buffer_store(sums, const(0, dtype), [i])
        first, last = tile * slices // share, ((tile + 1) * slices - 1) // share
        with T.serial(0, last - first + 1) as each:
            block = first + each
            turn = tirx.Select(block * share // slices == tile, 0, 1)
            with T.unroll(0, template.registers) as i:
                at = (block * 2 + turn) * size + i * template.threads + thread
                T.buffer_store(sums, sums[i] + kept[at], [i])
        _place(template, tile + tiles[0], *across)
        template.store(sums, thread, template.gemm.store, False)


def _place(template: Blocks, tile: Expr, rows: int, columns: int) -> None:
    batch = tile // (rows * columns)
    row, column = raster(tile % (rows * columns), rows, columns)
    template.place(batch, batch, row * template.extents[0], column * template.extents[1])


AnyTile = TypeVar("AnyTile")
"""The tile of a template."""


@dataclass(frozen=True, slots=True)
class Timed(Generic[AnyTile]):
    """A tile, and an estimate of the seconds that a GEMM takes with it."""

    seconds: float
    tile: AnyTile


@dataclass(frozen=True, slots=True)
class StreamK:
    """What estimates need: tiles, slices of each, bytes of a block's sums, blocks that the device runs at a time."""

    tiles: int
    slices: int
    kept: int
    at_once: int

    def streams(self) -> int:
        """Blocks that share the partial last wave; 0 where there is none, or less than a slice for each block."""
        rest = self.tiles % self.at_once
        return self.at_once if rest * self.slices >= self.at_once else 0

    def streamed(self, step: float) -> float:
        """Cycles with Stream-K, where a slice takes `step`."""
        full_waves, rest = divmod(self.tiles, self.at_once)
        share = math.ceil(rest * self.slices / self.at_once)
        return full_waves * ((self.slices + 1) * step + STARTED) + (share + 3) * step + STARTED

    def added(self, bandwidth: float) -> float:
        """Seconds that Stream-K adds, about: launches, and the parts through memory twice."""
        rest = self.tiles % self.at_once
        return 5e-6 + 2 * (rest + self.at_once) * self.kept / bandwidth


STARTED = 1500
"""Cycles that a block takes besides its slices, about."""
