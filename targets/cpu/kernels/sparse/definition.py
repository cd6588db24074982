"""The definition of a block-sparse product, and its parts as the loops need them.

    y[m, n] = sum over blocks b of n's group, i of panels[m / rows, starts[b] + i, m % rows] * blocks[b, i, n % bn]

`order` holds the pointers of the groups, then the bounds of ranges of groups: a task takes one range for one tile of
rows, and each range has as many blocks as the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tvm import ir, s_tir, te, tirx
from tvm.ir import Expr
from tvm.script.ir_builder import tirx as T

from graphopt.targets.common.kernels.anchored import Anchored, read
from graphopt.targets.common.kernels.blocks import RULE, Block, const, dims
from graphopt.targets.common.kernels.guards import inside, when
from graphopt.targets.cpu.machine import CpuMachine

IMBALANCE = 0.05
"""By how much the busiest core may have more to do than the mean."""


def order(
    rows: NDArray[np.integer], groups: int, tiles: int, cores: int, line: int = 1, least: int = 1
) -> NDArray[np.int32]:
    """The pointers of the groups, then the bounds of the ranges of groups that tasks take.

    A task takes one range for one tile.

    Args:
        rows: the group of each block, ascending.
        groups: a multiple of `line`.
        tiles: tiles of rows, each of which has a task for every range.
        line: groups that are not separated.
        least: ranges, at least, if there are as many lines.
    """
    pointers = np.searchsorted(rows, np.arange(groups + 1))
    lines = groups // line
    parts = next(
        (p for p in range(least, lines) if math.ceil(tiles * p / cores) * cores <= tiles * p * (1 + IMBALANCE)), lines
    )
    work = pointers[::line] + np.arange(0, groups + 1, line)  # to store a group's sums costs about as much as a block
    bounds = np.searchsorted(work, np.arange(parts + 1) * (work[-1] / parts) - 0.5) * line
    return np.concatenate([pointers, bounds]).astype(np.int32)


def ranges(weight_bytes: int, machine: CpuMachine) -> int:
    """Ranges of which each fills half of the second-level cache: the other half is for what the blocks multiply."""
    return max(1, math.ceil(weight_bytes / (machine.l2_bytes / 2)))


def compute(
    rule: str,
    panels: te.Tensor,
    blocks: te.Tensor,
    starts: te.Tensor,
    order: te.Tensor,
    shape: Sequence[int],
    rows: int,
    longest: int,
    groups: int,
) -> te.Tensor:
    """The product, written as `shape`, whose last axis holds N and whose others hold M.

    Args:
        rule: the schedule rule that writes its loops.
        panels: [ceil(M / rows), K, width], of whose lanes `rows` are used.
        blocks: [B, bk, bn].
        starts: [B].
        order: see `order`.
        rows: of a tile.
        longest: blocks of the longest group.
        groups: at least N / bn.
    """
    _, bk, bn = dims(blocks)
    m = math.prod(shape[:-1])
    j, i = te.reduce_axis((0, longest), "j"), te.reduce_axis((0, bk), "i")

    def element(y: Expr, group: Expr, lane: Expr) -> Expr:
        block = order[group] + j
        product = panels[tirx.floordiv(y, rows), starts[block] + i, tirx.floormod(y, rows)] * blocks[block, i, lane]
        return te.sum(tirx.if_then_else(block < order[group + 1], product, const(0, blocks.dtype)), axis=[j, i])

    notes = {RULE: rule, "graphopt.rows": rows, "graphopt.shape": list(shape)}
    sums = te.compute((m, groups, bn), element, name="product", attrs=notes)

    def finish(*index: Expr) -> Expr | te.TensorSlice:
        flat: Expr | int = 0
        for at, extent in zip(index[:-1], shape, strict=False):
            flat = flat * extent + at
        return sums[flat, tirx.floordiv(index[-1], bn), tirx.floormod(index[-1], bn)]

    return te.compute(tuple(shape), finish, name="finish")


@dataclass(frozen=True, slots=True)
class Product:
    """A product as its loops see it: operands, extents, and where results go.

    M rows of results in tiles of `rows`, `groups` of `width` outputs, of which `n` exist; `depth` inputs of a block,
    and at most `longest` blocks of a group.
    """

    function: Anchored
    panels: tirx.Buffer
    blocks: tirx.Buffer
    starts: tirx.Buffer
    order: tirx.Buffer
    m: int
    n: int
    rows: int
    groups: int
    width: int
    depth: int
    longest: int

    @property
    def tiles(self) -> int:
        """Tiles of rows."""
        return math.ceil(self.m / self.rows)

    @property
    def parts(self) -> int:
        """Ranges of groups."""
        return dims(self.order)[0] - self.groups - 2

    def pointer(self, group: Expr) -> Expr:
        """The first block of a group; that of `groups` is where the last one ends."""
        return self.order[group].astype(self.function.index)

    def bound(self, part: Expr) -> Expr:
        """The first group of a range."""
        return self.order[self.groups + 1 + part].astype(self.function.index)

    def start(self, block: Expr) -> Expr:
        """The first input of a block."""
        return self.starts[block].astype(self.function.index)

    def store(self, sums: tirx.Buffer, at: Expr | int, m: Expr, n: Expr, lanes: int) -> None:
        """Emit the epilogue of `lanes` results of row m, from column n on, whose sums begin at `at`."""

        def one(lane: Expr) -> None:
            places, rest = [n + lane], m
            for extent in reversed(self.function.extents[1:-1]):
                places.insert(0, tirx.floormod(rest, extent))
                rest = tirx.floordiv(rest, extent)
            if len(self.function.extents) > 1:
                places.insert(0, rest)
            T.buffer_store(*self.function.store(places, sums[at + lane]))

        with when(inside((m, self.m, self.rows))):
            if self.n % lanes == 0 and self.n == self.groups * self.width:
                with T.vectorized(0, lanes) as lane:
                    one(lane)
                return
            with T.If(n + lanes <= self.n):
                with T.Then(), T.vectorized(0, lanes) as lane:
                    one(lane)
                with T.Else(), T.serial(0, lanes) as lane, when(n + lane < self.n):
                    one(lane)


def product_of(sch: s_tir.Schedule, anchor: Block) -> Product:
    """The product that `anchor` of a function computes.

    Raises:
        ValueError: it is no such product, or what follows it is not elementwise.
    """
    annotations = sch.get(anchor.rv).annotations
    rows, shape = int(annotations["graphopt.rows"]), tuple(int(extent) for extent in annotations["graphopt.shape"])
    function = read(sch, anchor)
    if function.extents != shape:
        raise ValueError("what follows it changes the shape of its result")
    panels, blocks, starts, bounds = operands_of(function)
    m, groups, width = function.total_extents
    return Product(
        function,
        panels,
        blocks,
        starts,
        bounds,
        m,
        shape[-1],
        rows,
        groups,
        width,
        anchor.reduce[1],
        anchor.reduce[0],
    )


def operands_of(function: Anchored) -> tuple[tirx.Buffer, tirx.Buffer, tirx.Buffer, tirx.Buffer]:
    """What is multiplied (x, blocks), where x is read (starts), and the bounds of the groups (order).

    Raises:
        ValueError: the sum has another form than if_then_else(block < order[...], x[..., starts[block] ...] * blocks).
    """
    value = function.value
    if not isinstance(value, ir.Call) or not isinstance(value.args[1], tirx.Mul):
        raise ValueError("it is no sum of products under a condition")
    x, block = value.args[1].a, value.args[1].b
    starts = next(buffer for index in x.indices for buffer in _loaded(index))
    return x.source, block.source, starts, next(_loaded(value.args[0].b))


def _loaded(value: Expr) -> Iterator[tirx.Buffer]:
    """The buffers that an index reads, the outermost loads first."""
    if isinstance(value, ir.TensorLoad):
        yield value.source
    elif isinstance(value, tirx.Add | tirx.Mul):
        yield from _loaded(value.a)
        yield from _loaded(value.b)
    elif isinstance(value, tirx.Cast):
        yield from _loaded(value.value)
