"""Block-sparse products by vectors of rows, for blocks narrower than a vector of outputs: 8x1, 4x1, single weights.

A weight is broadcast and meets vectors of rows, which the panel holds side by side: `vectors` loads for a column of
`bn` weights, `bn x vectors` multiply-adds. The groups that fill a vector of outputs follow each other; then squares of
their sums are transposed in registers, so that results are stored in full vectors.
"""

from __future__ import annotations

from tvm import s_tir, tirx
from tvm.ir import Expr
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from graphopt.targets.common.kernels.blocks import Block
from graphopt.targets.cpu.kernels.sparse.accumulate import Accumulator
from graphopt.targets.cpu.kernels.sparse.definition import Product, product_of
from graphopt.targets.cpu.kernels.squares import exchanges
from graphopt.targets.cpu.kernels.tiling import padded_tile
from graphopt.targets.cpu.machine import CpuMachine

NAME = "sparse_rows"


def tile_vectors(m: int, width: int, machine: CpuMachine, dtype: str) -> int:
    """Vectors of rows of a register tile with `width` outputs: their sums, a line of the panel, and a broadcast."""
    return padded_tile(-(-m // machine.lanes(dtype)), max(1, (machine.level.registers - 1) // (width + 1)))


def schedule(sch: s_tir.Schedule, anchor: Block, machine: CpuMachine) -> tirx.PrimFunc:
    """The function with loops that end where a group does: a task for each tile of rows and range of groups."""
    product = product_of(sch, anchor)
    lanes = machine.lanes(product.function.dtype)
    if lanes % product.width or product.groups * product.width % lanes or product.rows % lanes:
        raise ValueError(f"{product.rows} rows and groups of {product.width} outputs do not fill vectors of {lanes}")
    return product.function.function.with_body(_Loops(product, lanes).statement())


class _Loops:
    """Emits the loops."""

    def __init__(self, product: Product, lanes: int) -> None:
        self.product, self.dtype, self.lanes = product, product.function.dtype, lanes
        self.vectors = product.rows // lanes
        self.line = lanes // product.width

    def statement(self) -> tirx.Stmt:
        """The body of the function."""
        p = self.product
        with IRBuilder() as builder:
            with T.prim_func(s_tir=True):
                T.func_name("main")
                with T.parallel(0, p.tiles * p.parts) as task:
                    tile, part = tirx.floordiv(task, p.parts), tirx.floormod(task, p.parts)
                    results = T.alloc_buffer((self.lanes * p.rows,), self.dtype, scope="local")
                    first, last = (tirx.floordiv(p.bound(part + end), self.line) for end in (0, 1))
                    with T.serial(first, last) as line:
                        with T.serial(0, self.line) as inner:
                            self._group(results, tile, line * self.line + inner, inner)
                        self._finish(results, tile, line)
            return builder.get().body

    def _group(self, results: tirx.Buffer, tile: Expr, group: Expr, inner: Expr) -> None:
        """Sum up one group, and keep its lines of the transposed results: one for each output."""
        p = self.product

        def term(block: Expr, step: Expr, place: Expr, at: int, lane: Expr) -> Expr:
            output, vector = divmod(at, self.vectors)
            return p.panels[tile, place, vector * self.lanes + lane] * p.blocks[block, step, output]

        vectors = p.width * self.vectors
        begin, end = T.bind(p.pointer(group)), T.bind(p.pointer(group + 1))
        sums = Accumulator(self.dtype, vectors, self.lanes, p.depth, p.longest, p.start, term).emit(begin, end)
        for at in range(vectors):
            with T.vectorized(0, self.lanes) as lane:
                T.buffer_store(results, sums[at * self.lanes + lane], [(inner * vectors + at) * self.lanes + lane])

    def _finish(self, results: tirx.Buffer, tile: Expr, line: Expr) -> None:
        """Transpose the results of one vector of outputs, square by square, and store them."""
        p = self.product
        square = T.alloc_buffer((self.lanes * self.lanes,), self.dtype, scope="local")
        for vector in range(self.vectors):
            current = [
                T.bind(tirx.BufferLoad(results, [self._lanes(output * self.vectors + vector)]))
                for output in range(self.lanes)
            ]
            for pairs in exchanges(self.lanes):
                current = [T.bind(tirx.Shuffle([current[a], current[b]], indices)) for a, b, indices in pairs]
            for row, value in enumerate(current):
                T.buffer_store(square, value, [self._lanes(row)])
            for row in range(self.lanes):
                m = tile * p.rows + vector * self.lanes + row
                p.store(square, row * self.lanes, m, line * self.lanes, self.lanes)

    def _lanes(self, vector: int) -> Expr:
        """The indices of a vector of a buffer."""
        index = self.product.function.index
        return tirx.Ramp(tirx.IntImm(index, vector * self.lanes), tirx.IntImm(index, 1), self.lanes)
