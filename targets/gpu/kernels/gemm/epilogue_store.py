"""How sums leave the lanes of tensor cores: strips of 16 rows through shared memory, each warp's by itself.

A lane holds two neighbouring sums of every eight columns; afterwards it stores four neighbours, or one, as they lie in
the result, with the epilogue applied.
"""

from __future__ import annotations

import math

from tvm import ir, tirx
from tvm.ir import Expr
from tvm.script.ir_builder import tirx as T

from graphopt.targets.common.kernels.blocks import const
from graphopt.targets.common.kernels.guards import when
from graphopt.targets.common.tir.expressions import rewritten
from graphopt.targets.gpu.kernels.gemm.access import AccessPattern
from graphopt.targets.gpu.kernels.gemm.product import Gemm
from graphopt.targets.gpu.kernels.gemm.split_k import Store
from graphopt.targets.gpu.kernels.gemm.tensor_cores import Units

VECTOR = 4
"""Results that a thread stores at a time, where they are neighbours in memory."""

IN_FLIGHT = 4
"""Vectors of a strip that a thread has in flight; with more, their addresses take registers of the sums."""

ROWS, COLUMNS = 16, 8
"""Rows and columns of the sums of one warp instruction."""


class EpilogueStore:
    """Stores sums of a GEMM; `tile` is the extent of a block's part of it, along m and n."""

    def __init__(self, gemm: Gemm, units: Units, store: Store, tile: tuple[int, int], split: bool) -> None:
        """Args: split: `store` keeps sums of parts of k, in rows of n."""
        self.gemm, self.units, self.store, self.tile = gemm, units, store, tile
        self.vector = _vector(gemm, store, split)

    def allocate(self, warps: int, columns: int) -> None:
        """Allocate shared memory for strips of `columns`."""
        self.columns = columns
        self.stride = columns + COLUMNS  # rows of a strip then begin in different banks
        self.strip = T.alloc_buffer((warps * ROWS * self.stride,), self.gemm.dtype, scope=self.units.scope)

    def put(self, sums: tirx.Buffer, first: Expr, thread: Expr, at: Expr, row: Expr, column: Expr) -> None:
        """Store the sums from `first` on.

        Args:
            at: the first argument of `store`; row, column: of the strip's first result.
        """
        warp, lane = thread // 32, thread % 32
        base = warp * (ROWS * self.stride)
        with self.units.unrolled(self.columns // COLUMNS) as j:
            for half in range(2):
                place = base + (lane // 4 + half * 8) * self.stride + j * COLUMNS + lane % 4 * 2
                with T.vectorized(0, 2) as each:
                    T.buffer_store(self.strip, sums[first + j * 4 + half * 2 + each], [place + each])
        self.units.warp_barrier()
        across = self.columns // self.vector
        turns = ROWS * across // 32
        in_flight = math.gcd(turns, IN_FLIGHT)
        with T.serial(0, turns // in_flight) as group, self.units.unrolled(in_flight) as turn:
            item = (group * in_flight + turn) * 32 + lane
            inner_row, inner_column = item // across, item % across * self.vector
            m, n = row + inner_row, column + inner_column
            with when(self.gemm.exists(m, n, self.tile)):
                self._keep(at, m, n, base + inner_row * self.stride + inner_column)
        self.units.warp_barrier()

    def _keep(self, at: Expr, m: Expr, n: Expr, place: Expr) -> None:
        """Store neighbours: values of functions that take one number at a time go through registers first."""
        buffer, value, indices = self.store(at, m, n, self.strip[place])
        if self.vector == 1 or not _calls_functions(value):
            with T.vectorized(0, self.vector) as each:
                T.buffer_store(*self.store(at, m, n + each, self.strip[place + each]))
            return
        values = T.alloc_buffer((self.vector,), str(buffer.dtype), scope="local")
        with T.unroll(0, self.vector) as each:
            T.buffer_store(values, self.store(at, m, n + each, self.strip[place + each])[1], [each])
        with T.vectorized(0, self.vector) as each:
            T.buffer_store(buffer, values[each], self.store(at, m, n + each, self.strip[place])[2])


def _calls_functions(value: Expr) -> bool:
    """Whether `value` calls a C function, such as erff, for which TVM turns a vector into a loop."""
    calls = []

    def look(part: Expr) -> None:
        if isinstance(part, ir.Call) and str(getattr(part.op, "name", "")).endswith(("extern", "erf")):
            calls.append(part)

    rewritten(value, look)
    return bool(calls)


def _vector(gemm: Gemm, store: Store, split: bool) -> int:
    """How many results one store takes: `VECTOR` where results along n are neighbours in memory, aligned."""
    if split:
        return VECTOR if gemm.n % VECTOR == 0 else 1

    def element(batch: Expr, place: Expr, depth: Expr) -> Expr:
        buffer, _, indices = store(batch, depth, place, const(0, gemm.dtype))
        return buffer[tuple(indices)]

    stored = gemm.n if gemm.ragged is None else gemm.results
    target = AccessPattern(element, stored, gemm.m, gemm.index)
    return VECTOR if target.contiguous(False, VECTOR) else 1
