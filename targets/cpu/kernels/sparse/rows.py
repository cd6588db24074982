"""Block-sparse products by vectors of rows, for blocks narrower than a vector of outputs: 8x1, 4x1, single weights.

A weight is broadcast and meets vectors of rows, which the panel holds side by side: `vectors` loads for a column of
`bn` weights, `bn x vectors` multiply-adds. The groups that fill a vector of outputs follow each other; then squares of
their sums are transposed in registers, so that results are stored in full vectors.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import s_tir, tirx
from tvm.ir import Expr
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from graphopt.targets.common.kernels.blocks import Block, const
from graphopt.targets.cpu.kernels.sparse.definition import Product, product_of
from graphopt.targets.cpu.kernels.squares import exchanges
from graphopt.targets.cpu.kernels.tiling import largest_divisor, padded_tile
from graphopt.targets.cpu.machine import CpuMachine

NAME = "sparse_rows"

IN_FLIGHT = 8
"""Sums that hide the latency of a multiply-add: two units, four cycles."""

UNROLLED = 4
"""Inputs of a deep block whose multiply-adds are written one after another."""


def tile_vectors(m: int, width: int, machine: CpuMachine, dtype: str) -> int:
    """Vectors of rows of a register tile with `width` outputs: their sums, a line of the panel, and a broadcast."""
    return padded_tile(-(-m // machine.lanes(dtype)), max(1, (machine.level.registers - 1) // (width + 1)))


def schedule(sch: s_tir.Schedule, anchor: Block, machine: CpuMachine) -> tirx.PrimFunc:
    """The function with loops that end where a group does: a task for each tile of rows and range of groups."""
    product = product_of(sch, anchor)
    lanes = machine.lanes(product.function.dtype)
    if lanes % product.width or product.groups * product.width % lanes:
        raise ValueError(f"its groups of {product.width} outputs do not fill vectors of {lanes}")
    return product.function.function.with_body(_Loops(product, lanes).statement())


class _Loops:
    """Emits the loops."""

    def __init__(self, product: Product, lanes: int) -> None:
        self.product, self.dtype, self.lanes = product, product.function.dtype, lanes
        self.vectors = -(-product.rows // lanes)
        self.line = lanes // product.width
        self.sums = max(1, IN_FLIGHT // (product.width * self.vectors))

    def statement(self) -> tirx.Stmt:
        """The body of the function."""
        p = self.product
        with IRBuilder() as builder:
            with T.prim_func(s_tir=True):
                T.func_name("main")
                with T.parallel(0, p.tiles * p.parts) as task:
                    tile, part = tirx.floordiv(task, p.parts), tirx.floormod(task, p.parts)
                    results = T.alloc_buffer((self.lanes * self.vectors * self.lanes,), self.dtype, scope="local")
                    first, last = (tirx.floordiv(p.bound(part + end), self.line) for end in (0, 1))
                    with T.serial(first, last) as line:
                        with T.serial(0, self.line) as inner:
                            self._group(results, tile, line * self.line + inner, inner)
                        self._finish(results, tile, line)
            return builder.get().body

    def _group(self, results: tirx.Buffer, tile: Expr, group: Expr, inner: Expr) -> None:
        """Sum up one group, and keep its `width` rows of the transposed results."""
        p = self.product
        begin, end = T.bind(p.pointer(group)), T.bind(p.pointer(group + 1))
        size = p.width * self.vectors
        sums = T.alloc_buffer((self.sums * size * self.lanes,), self.dtype, scope="local")
        for each in range(self.sums * size):
            with T.vectorized(0, self.lanes) as lane:
                T.buffer_store(sums, const(0, self.dtype), [each * self.lanes + lane])
        together = max(1, self.sums // p.depth)
        steps = tirx.floordiv(end - begin, together)
        with T.serial(0, steps) as step:
            for part in range(together):
                self._block(sums, tile, begin + step * together + part, part)
        if together > 1:
            with T.serial(begin + steps * together, end) as block:
                self._block(sums, tile, block, 0)
        for other in range(1, self.sums):
            for at in range(size):
                self._add(sums, at, lambda lane, at=other * size + at: sums[at * self.lanes + lane])
        for at in range(size):
            with T.vectorized(0, self.lanes) as lane:
                place = ((inner * p.width + at // self.vectors) * self.vectors + at % self.vectors) * self.lanes
                T.buffer_store(results, sums[at * self.lanes + lane], [place + lane])

    def _block(self, sums: tirx.Buffer, tile: Expr, block: Expr, part: int) -> None:
        """Add the products of one block to the sums; neighbouring steps go to different ones."""
        p = self.product
        start = T.bind(p.start(block))
        unrolled = p.depth if p.depth <= UNROLLED else largest_divisor(p.depth, UNROLLED)
        with T.serial(0, p.depth // unrolled) as outer:
            for inner in range(unrolled):
                step = outer * unrolled + inner
                into = (part * unrolled + inner) % self.sums * p.width * self.vectors
                for output in range(p.width):
                    weight = p.blocks[block, step, output]
                    for vector in range(self.vectors):

                        def term(lane: Expr, step: Expr = step, vector: int = vector, weight: Expr = weight) -> Expr:
                            return p.panels[tile, start + step, vector * self.lanes + lane] * weight

                        self._add(sums, into + output * self.vectors + vector, term)

    def _add(self, sums: tirx.Buffer, at: int, value: Callable[[Expr], Expr]) -> None:
        with T.vectorized(0, self.lanes) as lane:
            place = at * self.lanes + lane
            T.buffer_store(sums, sums[place] + value(lane), [place])

    def _finish(self, results: tirx.Buffer, tile: Expr, line: Expr) -> None:
        """Transpose the results of one vector of outputs, square by square, and store them."""
        p = self.product
        one = tirx.IntImm(p.function.index, 1)
        square = T.alloc_buffer((self.lanes * self.lanes,), self.dtype, scope="local")
        for vector in range(self.vectors):
            current = [
                T.bind(
                    tirx.BufferLoad(
                        results, [tirx.Ramp(_int(p, (output * self.vectors + vector) * self.lanes), one, self.lanes)]
                    )
                )
                for output in range(self.lanes)
            ]
            for pairs in exchanges(self.lanes):
                current = [T.bind(tirx.Shuffle([current[a], current[b]], indices)) for a, b, indices in pairs]
            for row, value in enumerate(current):
                T.buffer_store(square, value, [tirx.Ramp(_int(p, row * self.lanes), one, self.lanes)])
            for row in range(self.lanes):
                m = tile * p.rows + vector * self.lanes + row
                p.store(square, row * self.lanes, m, line * self.lanes, self.lanes)


def _int(product: Product, value: int) -> tirx.IntImm:
    return tirx.IntImm(product.function.index, value)
