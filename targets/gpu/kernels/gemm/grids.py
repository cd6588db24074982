"""How blocks share the tiles of a product: a tile each, a part of k of a tile each, or equal shares of all slices.

Where tiles are no multiple of the blocks that a device runs at a time, the last round leaves some of it idle. Then the
tiles of that round are streamed: every block takes as many slices of k, going on from one tile into the next, and keeps
its sums in memory as its registers hold them; blocks of a second kernel add up what belongs to a tile, and store it.
Source: M. Osama, D. Merrill and others, Stream-K (2023), arXiv:2301.03598.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from graphopt.targets.common.kernels.blocks import const
from graphopt.targets.gpu.kernels.gemm import split_k as parts_of
from graphopt.targets.gpu.kernels.gemm.product import Product
from graphopt.targets.gpu.kernels.gemm.split_k import Store
from graphopt.targets.gpu.kernels.guards import when

RASTER = 8
"""Rows of tiles that neighbouring blocks go over together, so that they find each other's operands in the cache."""


class Blocks(Protocol):
    """What a writer does inside a block."""

    product: Product

    @property
    def extents(self) -> tuple[int, int]:
        """Of a tile, along m and n."""

    @property
    def threads(self) -> int:
        """Of a block."""

    @property
    def registers(self) -> int:
        """Sums of a thread."""

    @property
    def slices(self) -> int:
        """That the whole of k takes."""

    def begin(self, thread: Any) -> Any:
        """At the start of a kernel that multiplies: buffers; gives that of the sums."""

    def place(self, at: Any, batch: Any, row: Any, column: Any) -> None:
        """Where the tile lies: the first argument of what stores results, the batch, the first row and column."""

    def multiply(self, sums: Any, first: Any, count: Any) -> None:
        """sums = the products of `count` slices from `first` on; an integer, or an expression that is not 0."""

    def store(self, sums: Any, thread: Any, store: Store, split: bool) -> None:
        """Store the sums, in rows of parts of k where they are `split`."""


def function(template: Blocks, split: int, stream: int, resident: int) -> Any:
    """The product's function, whose blocks have tiles, `split` parts of them, or shares as `stream` blocks have them.

    Args:
        resident: how many blocks would do well to share a multiprocessor.
    """
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("main")
            if stream:
                streamed(template, stream)
            else:
                parts_of.split(template.product, split, template.threads, partial(parts, template, split))
        return template.product.replaced(builder.get().body, resident)


def raster(block: Any, rows: int, columns: int) -> tuple[Any, Any]:
    """The row and the column of a block's tile: `RASTER` rows of tiles, or fewer, column by column."""
    together = max(each for each in range(1, RASTER + 1) if rows % each == 0)
    return block // (together * columns) * together + block % together, block // together % columns


def counts(product: Product, extents: tuple[int, int]) -> tuple[int, int]:
    """Tiles along m and n."""
    return math.ceil(product.m / extents[0]), math.ceil(product.n / extents[1])


def parts(template: Blocks, split: int, store: Store) -> None:
    """A kernel in which every block has a tile, or one of `split` parts of one."""
    rows, columns = counts(template.product, template.extents)
    own = math.ceil(template.slices / split)
    with (
        T.launch_thread("blockIdx.x", rows * columns) as block,
        T.launch_thread("blockIdx.z", template.product.batch * split) as bz,
        T.launch_thread("threadIdx.x", template.threads) as thread,
    ):
        sums = template.begin(thread)
        row, column = raster(block, rows, columns)
        batch, part = (bz, 0) if split == 1 else (bz // split, bz % split)
        template.place(bz, batch, row * template.extents[0], column * template.extents[1])
        template.multiply(sums, part * own, own)
        template.store(sums, thread, store, split > 1)


def streamed(template: Blocks, blocks: int) -> None:
    """Whole rounds of `blocks` tiles, a kernel that streams the others, and one that adds them up."""
    product, slices = template.product, template.slices
    rows, columns = counts(product, template.extents)
    tiles = product.batch * rows * columns
    whole = tiles // blocks * blocks
    if whole:
        with (
            T.launch_thread("blockIdx.x", whole) as block,
            T.launch_thread("threadIdx.x", template.threads) as thread,
        ):
            sums = template.begin(thread)
            _place(template, block, rows, columns)
            template.multiply(sums, 0, slices)
            template.store(sums, thread, product.store, False)
    total = (tiles - whole) * slices
    if not total:
        return
    share = math.ceil(total / blocks)  # of less than a tile: so that a block meets two at most
    size = template.registers * template.threads
    kept = T.alloc_buffer((2 * blocks * size,), product.dtype, scope="global")
    with T.launch_thread("blockIdx.x", blocks) as block, T.launch_thread("threadIdx.x", template.threads) as thread:
        sums = template.begin(thread)
        start, end = block * share, tirx.min((block + 1) * share, total)
        with T.serial(0, 2) as turn:
            following = (start // slices + 1) * slices
            begin = tirx.Select(turn == 0, start, following)
            stop = tirx.min(end, (begin // slices + 1) * slices)
            with when(begin < stop):
                T.evaluate(T.tvm_storage_sync("shared"))  # what the turn before has in shared memory is used
                _place(template, begin // slices + whole, rows, columns)
                template.multiply(sums, begin % slices, stop - begin)
                with T.unroll(0, template.registers) as i:
                    at = (block * 2 + turn) * size + i * template.threads + thread
                    T.buffer_store(kept, sums[i], [at])
    _together(template, kept, (whole, tiles - whole), share, (rows, columns))


def _together(template: Blocks, kept: Any, tiles: tuple[int, int], share: int, across: tuple[int, int]) -> None:
    """The kernel that adds up the parts of every tile: from `tiles[0]` on, `tiles[1]` of them."""
    size, slices, dtype = template.registers * template.threads, template.slices, template.product.dtype
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
        template.store(sums, thread, template.product.store, False)


def _place(template: Blocks, tile: Any, rows: int, columns: int) -> None:
    batch = tile // (rows * columns)
    row, column = raster(tile % (rows * columns), rows, columns)
    template.place(batch, batch, row * template.extents[0], column * template.extents[1])


AnyTile = TypeVar("AnyTile")
"""The tile of a template."""


@dataclass(frozen=True, slots=True)
class Timed(Generic[AnyTile]):
    """A tile, and an estimate of what a product takes with it."""

    seconds: float
    tile: AnyTile


@dataclass(frozen=True, slots=True)
class StreamK:
    """What estimates look at: tiles of so many slices, a block's sums in bytes, blocks that a device runs at a time."""

    tiles: int
    slices: int
    kept: int
    at_once: int

    def streams(self) -> int:
        """Blocks to stream what whole rounds leave over; 0 where that is nothing, or less than a slice for each."""
        rest = self.tiles % self.at_once
        return self.at_once if rest * self.slices >= self.at_once else 0

    def streamed(self, step: float) -> float:
        """Cycles of streaming, where a slice takes `step`."""
        whole, rest = divmod(self.tiles, self.at_once)
        share = math.ceil(rest * self.slices / self.at_once)
        return whole * ((self.slices + 1) * step + STARTED) + (share + 3) * step + STARTED

    def added(self, bandwidth: float) -> float:
        """Seconds that it adds, about: launches, and the parts through memory twice."""
        rest = self.tiles % self.at_once
        return 5e-6 + 2 * (rest + self.at_once) * self.kept / bandwidth


STARTED = 1500
"""Cycles that a block takes besides its slices, about."""
