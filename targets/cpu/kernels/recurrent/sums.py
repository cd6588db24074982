"""Sums of products in registers: some rows times a panel of packed weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr
from tvm.script.ir_builder import tirx as T

from graphopt.targets.common.kernels.blocks import const

UNROLL = 4
"""Unrolled steps of a sum of products."""

IN_FLIGHT = 4
"""Vectors of sums that hide most of the latency of a multiply-add."""


@dataclass(frozen=True, slots=True)
class Run:
    """Products of `extent` consecutive elements: `left`(row, k) times `right`(k, vector, lane), unless not `when`."""

    extent: int
    left: Callable[[Expr, Expr], Expr]
    right: Callable[[Expr, Expr, Expr], Expr]
    when: Expr | None = None


def of_products(
    rows: int,
    vectors: int,
    lanes: int,
    dtype: str,
    start: Callable[[int, int, Expr], Expr],
    runs: Sequence[Run],
) -> tirx.Buffer:
    """Emit sums[rows * vectors * lanes], in front of the buffer: `start`(row, vector, lane) plus the products."""
    width = vectors * lanes
    # A few sums alone would wait for each other: each is then taken in parts, of every second or fourth product.
    parts = next(p for p in (4, 2, 1) if p == 1 or p * rows * vectors <= IN_FLIGHT)
    sums = T.alloc_buffer((parts * rows * width,), dtype, scope="local")
    for i in range(rows):
        for vector in range(vectors):
            with T.vectorized(0, lanes) as lane:
                T.buffer_store(sums, start(i, vector, lane), [i * width + vector * lanes + lane])
    for place in range(rows * width, parts * rows * width, lanes):
        with T.vectorized(0, lanes) as lane:
            T.buffer_store(sums, const(0, dtype), [place + lane])

    def multiply(run: Run, k: Expr, part: Expr | int) -> None:
        with T.unroll(0, rows) as i:
            left = run.left(i, k)
            with T.unroll(0, vectors) as vector, T.vectorized(0, lanes) as lane:
                place = (part * rows + i) * width + vector * lanes + lane
                T.buffer_store(sums, sums[place] + left * run.right(k, vector, lane), [place])

    for run in runs:
        whole, rest = run.extent // UNROLL, run.extent % UNROLL

        def times(count: int, when: Expr | None = run.when) -> Expr | int:
            return count if when is None else tirx.Select(when, count, 0)

        if whole:
            with T.serial(0, times(whole)) as outer, T.unroll(0, UNROLL) as inner:
                multiply(run, outer * UNROLL + inner, inner % parts)
        if rest:
            with T.serial(0, times(rest)) as k:
                multiply(run, whole * UNROLL + k, 0)
    for part in range(1, parts):
        for place in range(0, rows * width, lanes):
            with T.vectorized(0, lanes) as lane:
                total = sums[place + lane] + sums[part * rows * width + place + lane]
                T.buffer_store(sums, total, [place + lane])
    return sums
