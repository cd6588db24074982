"""Scaled dot-product attention as one kernel: the scores of a block of query rows never leave the caches.

    y[s, :] = sum over t of softmax(scale * q[s, :] . k[t, :] + mask[s, t]) * v[t, :]

A task is a block of query rows of one head. It multiplies them with all keys into a buffer, takes exponentials there
row by row, multiplies with the values, and divides by the sums at the end. A buffer of a few rows and all keys fits the
second-level cache for tens of thousands of keys, so no running maximum over blocks of keys is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import te, tirx
from tvm.ir import Expr
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from graphopt.program.program import ITEM_BYTES
from graphopt.targets.common.kernels import math as fast
from graphopt.targets.common.kernels.blocks import const, dims, round_up
from graphopt.targets.cpu.machine import CpuMachine

UNROLL = 4
"""Unrolled steps of a sum of products."""

MOST_ROWS = 96
"""Query rows of a task: enough to read each line of keys from the first-level cache many times."""


@dataclass(frozen=True, slots=True)
class Plan:
    """`rows` x `vectors` sums in registers; a task is `tiles` such rows."""

    lanes: int
    rows: int
    vectors: int
    tiles: int


def plan(heads: int, queries: int, keys: int, machine: CpuMachine, dtype: str) -> Plan:
    """The register tile, and tasks that fit half of the second-level cache and leave no core idle in the last wave."""
    lanes = machine.lanes(dtype)
    vectors = 4 if machine.level.registers >= 32 else 2
    most_rows = (machine.level.registers - vectors - 1) // vectors
    # Cycles of a step over all rows: two multiply-adds each, at least their latency, and the loads that are not hidden.
    rows = min(
        range(1, min(queries, most_rows) + 1),
        key=lambda r: (math.ceil(queries / r) * (max(r * vectors / 2, 4) + vectors / 4 + r / 10), -r),
    )
    count = math.ceil(queries / rows)
    row_bytes = rows * round_up(keys, lanes) * ITEM_BYTES[dtype]
    most = max(1, min(count, MOST_ROWS // rows, machine.l2_bytes // 2 // row_bytes))
    tiles = min(
        range(1, most + 1), key=lambda n: (round_up(heads * math.ceil(count / n), machine.cores) * (n + 0.5), -n)
    )
    return Plan(lanes, rows, vectors, tiles)


def compute(
    q: te.Tensor,
    keys: te.Tensor,
    values: te.Tensor,
    mask: te.Tensor | None,
    shape: Sequence[int],
    count: int,
    scale: float,
    tiling: Plan,
) -> te.Tensor:
    """The attention of q[B, H, S, D], written as `shape` [B, H, S, E].

    Args:
        keys: [B * H, ceil(T / lanes), D, lanes], as `gemm.pack` makes them of [B * H, T, D]; padding may be anything
            finite.
        values: [B * H, T, E rounded up to lanes].
        mask: added to the scores, broadcasts against [B, H, S, T]; or None.
        count: T.
    """

    def body(ins: Sequence[tirx.Buffer], outs: Sequence[tirx.Buffer]) -> tirx.Stmt:
        return _Template(ins[0], ins[1], ins[2], None if mask is None else ins[3], outs[0], count, scale, tiling).emit()

    inputs = [q, keys, values] if mask is None else [q, keys, values, mask]
    return te.extern([tuple(shape)], inputs, body, dtype=[q.dtype], name="attention")


class _Template:
    """Emits the loops; `task`, `tile`, `row` and so on are loop variables and functions of them."""

    def __init__(
        self,
        q: tirx.Buffer,
        keys: tirx.Buffer,
        values: tirx.Buffer,
        mask: Any,
        y: tirx.Buffer,
        count: int,
        scale: float,
        tiling: Plan,
    ) -> None:
        self.q, self.keys, self.values, self.mask, self.y = q, keys, values, mask, y
        self.count, self.scale, self.plan, self.dtype = count, scale, tiling, str(q.dtype)
        self.batch, self.heads, self.queries, self.depth = dims(q)
        self.width = dims(y)[-1]
        self.padded = round_up(count, tiling.lanes)
        self.tiles = math.ceil(self.queries / tiling.rows)

    def emit(self) -> tirx.Stmt:
        """The loop over all tasks."""
        tiling = self.plan
        blocks = math.ceil(self.tiles / tiling.tiles)
        tasks = self.batch * self.heads * blocks
        with IRBuilder() as builder:
            loop = T.parallel if tasks > 1 else T.serial
            with loop(0, tasks) as task:
                head, first = T.bind(task // blocks), T.bind(task % blocks * tiling.tiles)
                tiles = tiling.tiles if self.tiles % tiling.tiles == 0 else tirx.min(tiling.tiles, self.tiles - first)
                scores = T.alloc_buffer((tiling.tiles * tiling.rows, self.padded), self.dtype, scope="global")
                sums = T.alloc_buffer((tiling.tiles * tiling.rows,), self.dtype, scope="global")
                for start, groups, vectors in _groups(self.padded // tiling.lanes, tiling.vectors):
                    with T.serial(0, groups) as group, T.serial(0, tiles) as tile:
                        self._score(scores, head, first, tile, start + group * vectors, vectors)
                with T.serial(0, tiles * tiling.rows) as row:
                    self._softmax(scores, sums, head, first * tiling.rows + row, row)
                for start, groups, vectors in _groups(math.ceil(self.width / tiling.lanes), tiling.vectors):
                    with T.serial(0, groups) as group, T.serial(0, tiles) as tile:
                        self._average(scores, sums, head, first, tile, start + group * vectors, vectors)
            return builder.get()

    def _inside(self, row: Expr) -> Expr:
        """`row` clamped to the rows of q: the last tile computes rows that are not stored."""
        return row if self.queries % self.plan.rows == 0 else tirx.min(row, self.queries - 1)

    def _accumulate(
        self, vectors: int, length: int, left: Callable[[int, Expr], Expr], right: Callable[[Expr, int, Expr], Expr]
    ) -> tirx.Buffer:
        """Sums over k of left(row, k) * right(k, vector, lane), in registers: [rows * vectors * lanes]."""
        rows, lanes = self.plan.rows, self.plan.lanes
        sums = T.alloc_buffer((rows * vectors * lanes,), self.dtype, scope="local")
        for place in range(rows * vectors):
            with T.vectorized(0, lanes) as lane:
                T.buffer_store(sums, const(0, self.dtype), [place * lanes + lane])

        def multiply(k: Expr) -> None:
            for i in range(rows):
                factor = left(i, k)
                for vector in range(vectors):
                    with T.vectorized(0, lanes) as lane:
                        place = (i * vectors + vector) * lanes + lane
                        T.buffer_store(sums, sums[place] + factor * right(k, vector, lane), [place])

        unrolled = length // UNROLL * UNROLL
        if unrolled:
            with T.serial(0, length // UNROLL) as outer, T.unroll(0, UNROLL) as inner:
                multiply(outer * UNROLL + inner)
        if unrolled < length:
            with T.serial(0, length - unrolled) as k:
                multiply(unrolled + k)
        return sums

    def _score(self, scores: tirx.Buffer, head: Expr, first: Expr, tile: Expr, start: Expr, vectors: int) -> None:
        """Products of one tile of query rows with `vectors` vectors of keys."""
        rows, lanes, h = self.plan.rows, self.plan.lanes, self.heads
        row = T.bind((first + tile) * rows)
        places = [T.bind(self._inside(row + i)) for i in range(rows)]
        sums = self._accumulate(
            vectors,
            self.depth,
            lambda i, k: self.q[head // h, head % h, places[i], k],
            lambda k, vector, lane: self.keys[head, start + vector, k, lane],
        )
        for i in range(rows):
            for vector in range(vectors):
                with T.vectorized(0, lanes) as lane:
                    value = sums[(i * vectors + vector) * lanes + lane]
                    T.buffer_store(scores, value, [tile * rows + i, (start + vector) * lanes + lane])

    def _softmax(self, scores: tirx.Buffer, sums: tirx.Buffer, head: Expr, query: Expr, row: Expr) -> None:
        """exp(scores - maximum) in place, and the sum; padding keys become zero."""
        lanes, full_vectors = self.plan.lanes, self.count // self.plan.lanes
        place = T.bind(self._inside(query))
        lowest = const(-math.inf, self.dtype)
        partial = T.alloc_buffer((lanes,), self.dtype, scope="local")
        with T.vectorized(0, lanes) as lane:
            T.buffer_store(partial, lowest, [lane])

        def scaled(start: Expr | int, ragged: bool) -> None:
            with T.vectorized(0, lanes) as lane:
                column = start + lane
                at = tirx.min(column, self.count - 1) if ragged else column
                value = scores[row, column] * const(self.scale, self.dtype)
                if self.mask is not None:
                    value = value + self._masked(head, place, at)
                if ragged:
                    value = tirx.Select(column < self.count, value, lowest)
                T.buffer_store(scores, value, [row, column])
            with T.vectorized(0, lanes) as lane:
                T.buffer_store(partial, tirx.max(partial[lane], scores[row, start + lane]), [lane])

        if full_vectors:
            with T.serial(0, full_vectors) as vector:
                scaled(vector * lanes, ragged=False)
        if self.count % lanes:
            scaled(full_vectors * lanes, ragged=True)
        self._fold(partial, tirx.max)
        top = T.bind(partial[0])
        with T.vectorized(0, lanes) as lane:
            T.buffer_store(partial, const(0, self.dtype), [lane])
        with T.serial(0, self.padded // lanes) as vector:
            with T.vectorized(0, lanes) as lane:
                column = vector * lanes + lane
                T.buffer_store(scores, fast.exp_of_negative(scores[row, column] - top), [row, column])
            with T.vectorized(0, lanes) as lane:
                T.buffer_store(partial, partial[lane] + scores[row, vector * lanes + lane], [lane])
        self._fold(partial, lambda a, b: a + b)
        T.buffer_store(sums, partial[0], [row])

    def _masked(self, head: Expr, query: Expr, key: Expr) -> Expr:
        """The mask at a place of [B, H, S, T], which it broadcasts against."""
        extents = dims(self.mask)
        index = [head // self.heads, head % self.heads, query, key][4 - len(extents) :]
        zero = tirx.IntImm("int32", 0)
        return self.mask[tuple(zero if extent == 1 else i for i, extent in zip(index, extents, strict=True))]

    def _fold(self, partial: tirx.Buffer, combine: Callable[[Expr, Expr], Expr]) -> None:
        """Reduce all lanes into the first one."""
        half = self.plan.lanes // 2
        while half:
            with T.vectorized(0, half) as lane:
                T.buffer_store(partial, combine(partial[lane], partial[half + lane]), [lane])
            half //= 2

    def _average(
        self, scores: tirx.Buffer, sums: tirx.Buffer, head: Expr, first: Expr, tile: Expr, start: Expr, vectors: int
    ) -> None:
        """`vectors` vectors of the result for one tile of query rows."""
        rows, lanes, h = self.plan.rows, self.plan.lanes, self.heads
        averages = self._accumulate(
            vectors,
            self.count,
            lambda i, k: scores[tile * rows + i, k],
            lambda k, vector, lane: self.values[head, k, (start + vector) * lanes + lane],
        )
        row = T.bind((first + tile) * rows)

        def store(i: int) -> None:
            factor = T.bind(const(1, self.dtype) / sums[tile * rows + i])
            for vector in range(vectors):
                place, column = (i * vectors + vector) * lanes, (start + vector) * lanes
                if self.width % lanes == 0:
                    with T.vectorized(0, lanes) as lane:
                        index = (head // h, head % h, row + i, column + lane)
                        T.buffer_store(self.y, averages[place + lane] * factor, index)
                    continue
                copy = T.alloc_buffer((lanes,), self.dtype, scope="local")
                with T.vectorized(0, lanes) as lane:
                    T.buffer_store(copy, averages[place + lane] * factor, [lane])
                with T.serial(0, tirx.min(lanes, self.width - column)) as lane:
                    T.buffer_store(self.y, copy[lane], (head // h, head % h, row + i, column + lane))

        for i in range(rows):
            if self.queries % rows == 0:
                store(i)
            else:
                with T.If(row + i < self.queries), T.Then():
                    store(i)


def _groups(vectors: int, most: int) -> list[tuple[int, int, int]]:
    """`vectors` in groups of nearly equal size, at most `most`: (first vector, number of groups, size of each)."""
    count = math.ceil(vectors / most)
    size, larger = divmod(vectors, count)
    groups = [(0, larger, size + 1), (larger * (size + 1), count - larger, size)]
    return [entry for entry in groups if entry[1]]
