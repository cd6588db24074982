"""Block-sparse products by vectors of outputs, for blocks of full vectors: 16x1, 16x16, 32x32.

A line of weights of a block meets the numbers of all rows of the tile, which stand side by side in the panel: one load,
and for each row a multiply-add with a broadcast from memory, for one entry of `starts`. The sums of a tile stay in
registers until the group ends.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import s_tir, tirx
from tvm.ir import Expr
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from graphopt.targets.common.kernels.blocks import Block, const
from graphopt.targets.cpu.kernels.sparse.definition import Product, product_of
from graphopt.targets.cpu.kernels.tiling import largest_divisor, padded_tile
from graphopt.targets.cpu.machine import CpuMachine

NAME = "sparse_outputs"

IN_FLIGHT = 8
"""Sums that hide the latency of a multiply-add: two units, four cycles."""

UNROLLED = 4
"""Inputs of a deep block whose multiply-adds are written one after another."""


def tile_rows(m: int, lanes: int) -> int:
    """Rows of a register tile, at most one vector of them, since that is how wide panels are."""
    return padded_tile(m, lanes)


def schedule(sch: s_tir.Schedule, anchor: Block, machine: CpuMachine) -> tirx.PrimFunc:
    """The function with loops that end where a group does: a task for each tile of rows and range of groups."""
    product = product_of(sch, anchor)
    return product.function.function.with_body(_Loops(product, machine).statement())


class _Loops:
    """Emits the loops."""

    def __init__(self, product: Product, machine: CpuMachine) -> None:
        self.product, self.dtype = product, product.function.dtype
        self.lanes = min(machine.lanes(self.dtype), product.width)
        self.sums = max(1, IN_FLIGHT // product.rows)

    def statement(self) -> tirx.Stmt:
        """The body of the function."""
        p = self.product
        with IRBuilder() as builder:
            with T.prim_func(s_tir=True):
                T.func_name("main")
                with T.parallel(0, p.tiles * p.parts) as task:
                    tile, part = tirx.floordiv(task, p.parts), tirx.floormod(task, p.parts)
                    with T.serial(p.bound(part), p.bound(part + 1)) as group:
                        begin, end = T.bind(p.pointer(group)), T.bind(p.pointer(group + 1))
                        for first in range(0, p.width, self.lanes):
                            self._vector(tile, group, begin, end, first)
            return builder.get().body

    def _vector(self, tile: Expr, group: Expr, begin: Expr, end: Expr, first: int) -> None:
        """One vector of a group's outputs, from lane `first` on."""
        p = self.product
        sums = T.alloc_buffer((self.sums * p.rows * self.lanes,), self.dtype, scope="local")
        for each in range(self.sums * p.rows):
            with T.vectorized(0, self.lanes) as lane:
                T.buffer_store(sums, const(0, self.dtype), [each * self.lanes + lane])
        together = max(1, self.sums // p.depth)
        steps = tirx.floordiv(end - begin, together)
        with T.serial(0, steps) as step:
            for part in range(together):
                self._block(sums, tile, begin + step * together + part, first, part)
        if together > 1:
            with T.serial(begin + steps * together, end) as block:
                self._block(sums, tile, block, first, 0)
        for other in range(1, self.sums):
            for row in range(p.rows):
                self._add(sums, row, lambda lane, at=other * p.rows + row: sums[at * self.lanes + lane])
        for row in range(p.rows):
            p.store(sums, row * self.lanes, tile * p.rows + row, group * p.width + first, self.lanes)

    def _block(self, sums: tirx.Buffer, tile: Expr, block: Expr, first: int, part: int) -> None:
        """Add the products of one block to the sums; neighbouring steps go to different ones."""
        p = self.product
        start = T.bind(p.start(block))
        unrolled = p.depth if p.depth <= UNROLLED else largest_divisor(p.depth, UNROLLED)
        with T.serial(0, p.depth // unrolled) as outer:
            for inner in range(unrolled):
                step = outer * unrolled + inner
                into = (part * unrolled + inner) % self.sums * p.rows
                for row in range(p.rows):
                    number = p.panels[tile, start + step, row]
                    self._add(
                        sums,
                        into + row,
                        lambda lane, step=step, number=number: p.blocks[block, step, first + lane] * number,
                    )

    def _add(self, sums: tirx.Buffer, at: int, value: Callable[[Expr], Expr]) -> None:
        with T.vectorized(0, self.lanes) as lane:
            place = at * self.lanes + lane
            T.buffer_store(sums, sums[place] + value(lane), [place])
