"""Block-sparse products by vectors of outputs, for blocks of full vectors: 16x1, 16x16, 32x32.

A line of weights of a block meets the numbers of all rows of the tile, which stand side by side in the panel: one load,
and for each row a multiply-add with a broadcast from memory, for one entry of `starts`. The sums of a tile stay in
registers until the group ends. Tasks go over the ranges of groups with one tile, because a core reads the panels that
it has written itself several times faster than those of another.
"""

from __future__ import annotations

from tvm import s_tir, tirx
from tvm.ir import Expr
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from graphopt.targets.common.kernels.blocks import Block
from graphopt.targets.cpu.kernels.sparse.accumulate import Accumulator
from graphopt.targets.cpu.kernels.sparse.definition import Product, product_of
from graphopt.targets.cpu.kernels.tiling import padded_tile
from graphopt.targets.cpu.machine import CpuMachine

NAME = "sparse_outputs"


def tile_rows(m: int, lanes: int) -> int:
    """Rows of a register tile, at most one vector of them, since that is how wide panels are."""
    return padded_tile(m, lanes)


def schedule(sch: s_tir.Schedule, anchor: Block, machine: CpuMachine) -> tirx.PrimFunc:
    """The function with loops that end where a group does: a task for each tile of rows and range of groups."""
    p = product_of(sch, anchor)
    lanes = min(machine.lanes(p.function.dtype), p.width)
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("main")
            with T.parallel(0, p.tiles * p.parts) as task:
                tile, part = tirx.floordiv(task, p.parts), tirx.floormod(task, p.parts)
                with T.serial(p.bound(part), p.bound(part + 1)) as group:
                    begin, end = T.bind(p.pointer(group)), T.bind(p.pointer(group + 1))
                    for first in range(0, p.width, lanes):
                        _vector(p, lanes, tile, group, (begin, end), first)
        body = builder.get().body
    return p.function.function.with_body(body)


def _vector(p: Product, lanes: int, tile: Expr, group: Expr, blocks: tuple[Expr, Expr], first: int) -> None:
    """Sum up and store one vector of a group's outputs, from lane `first` on, for all rows of the tile."""

    def term(block: Expr, step: Expr, place: Expr, row: int, lane: Expr) -> Expr:
        return p.blocks[block, step, first + lane] * p.panels[tile, place, row]

    sums = Accumulator(p.function.dtype, p.rows, lanes, p.depth, p.longest, p.start, term).emit(*blocks)
    for row in range(p.rows):
        p.store(sums, row * lanes, tile * p.rows + row, group * p.width + first, lanes)
