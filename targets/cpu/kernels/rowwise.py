"""Row-wise kernels: softmax, layer normalization, and their reductions over the last axis.

All blocks of one row (maximum, exponentials, sum, scaling) run inside one parallel loop over rows, so that a row is
read from memory once and stays in the first-level cache. A sum along the row is kept in one vector of partial sums.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import s_tir, te, tirx
from tvm.ir import Expr

from graphopt.targets.common.kernels import math as fast
from graphopt.targets.common.kernels.blocks import RULE, Block, blocks_of, const, dims, dtype_of
from graphopt.targets.cpu.kernels.tiling import largest_divisor, several, summed_in
from graphopt.targets.cpu.machine import CpuMachine

NAME = "rowwise"

Place = Callable[[Expr, Expr | tirx.IterVar], Expr]

ONE_SIGN = 8
"""A sum of terms of one sign may be this many times as long for the same relative error."""

MIN_PARALLEL = 1 << 13
"""Elements below which waking another core costs more than it saves."""


def softmax(x: te.Tensor, lanes: int, scale: float = 1.0, logarithm: bool = False) -> te.Tensor:
    """Softmax (or its logarithm) of `scale * x` along the last axis of x[rows, n].

    Args:
        lanes: elements of a vector.
    """
    rows, n = dims(x)
    factor = const(scale, x.dtype)
    kept = summed_in(x.dtype, n // (4 * lanes) // ONE_SIGN)  # in the lanes of four vectors
    top = reduced(rows, n, lanes, te.max, tirx.max, lambda i, r: x[i, r] * factor, "top")
    if logarithm:

        def power(i: Expr, q: Expr | tirx.IterVar) -> Expr:
            return fast.exp_of_negative(x[i, q] * factor - top[i]).astype(kept)

        sums = reduced(rows, n, lanes, te.sum, added, power, "sum")
        logs = te.compute((rows,), lambda i: tirx.log(sums[i].astype(x.dtype)), name="logs")
        return te.compute((rows, n), lambda i, j: x[i, j] * factor - top[i] - logs[i], name="scale")
    powers = te.compute((rows, n), lambda i, j: fast.exp_of_negative(x[i, j] * factor - top[i]), name="powers")
    sums = reduced(rows, n, lanes, te.sum, added, lambda i, q: powers[i, q].astype(kept), "sum")
    return te.compute((rows, n), lambda i, j: powers[i, j] / sums[i].astype(x.dtype), name="scale")


def added(a: te.TensorSlice, b: te.TensorSlice) -> Expr:
    """The sum of two parts."""
    return a + b


def reduced(
    rows: int,
    n: int,
    lanes: int,
    reduce: Callable[..., Expr],
    join: Callable[[te.TensorSlice, te.TensorSlice], Expr],
    value: Place,
    name: str,
) -> te.Tensor:
    """The reduction of value(row, j) along rows of n; elements after the last full vector are reduced separately."""
    left = n % lanes if n > lanes else 0
    q = te.reduce_axis((0, n - left), "q")
    main = te.compute((rows,), lambda i: reduce(value(i, q), axis=[q]), name=name, attrs={RULE: NAME})
    if not left:
        return main
    t = te.reduce_axis((0, left), "t")
    tail = te.compute((rows,), lambda i: reduce(value(i, n - left + t), axis=[t]), name=f"{name}_tail")
    return te.compute((rows,), lambda i: join(main[i], tail[i]), name=f"{name}_joined")


def layer_norm(
    x: te.Tensor, weight: te.Tensor, bias: te.Tensor | None, epsilon: float, place: Place = lambda _, j: j
) -> te.Tensor:
    """(x - mean) / sqrt(variance + epsilon) * weight + bias along the last axis of x[rows, n].

    The weight and bias of element (row, j) are those at `place`, j if there is one for each column.

    Two passes over the row, so that a large mean does not cancel the variance. The mean of a row of equal elements is
    that element, for it is rounded once.
    """
    rows, n = dims(x)
    r, q = te.reduce_axis((0, n), "r"), te.reduce_axis((0, n), "q")
    kept = "float64" if x.dtype == "float32" else x.dtype
    inverse = const(1.0 / n, x.dtype)
    sums = te.compute((rows,), lambda i: te.sum(x[i, r].astype(kept), axis=[r]), name="sum", attrs={RULE: NAME})
    means = te.compute((rows,), lambda i: (sums[i] / const(n, kept)).astype(x.dtype), name="mean")
    centred = te.compute((rows, n), lambda i, j: x[i, j] - means[i], name="centred")
    squares = te.compute(
        (rows,), lambda i: te.sum(centred[i, q] * centred[i, q], axis=[q]), name="squares", attrs={RULE: NAME}
    )

    def finish(i: Expr, j: Expr) -> Expr:
        at = place(i, j)
        scaled = centred[i, j] * tirx.rsqrt(squares[i] * inverse + const(epsilon, x.dtype)) * weight[at]
        return scaled if bias is None else scaled + bias[at]

    return te.compute((rows, n), finish, name="finish")


def schedule(sch: s_tir.Schedule, anchor: Block, machine: CpuMachine) -> None:
    """One parallel loop over the rows of the last block; every other block computed inside it, in vectors."""
    for block in blocks_of(sch):
        if block.reduce:
            _split_sum(sch, block, machine)
    *before, last = blocks_of(sch)
    row, _ = sch.get_loops(last.rv)
    for block in reversed(before):
        sch.compute_at(block.rv, row, preserve_unit_loops=True)
        sch.set_scope(block.rv, 0, "local")
    if anchor.spatial[0] * max(anchor.reduce) >= MIN_PARALLEL:
        sch.parallel(row)  # before a reduction is decomposed: after that TVM refuses it
    for block in (*before, last):
        if len(block.spatial) == 2:
            _vectorise(sch, block, machine)


def _split_sum(sch: s_tir.Schedule, block: Block, machine: CpuMachine) -> None:
    """Reduce into one vector of partial results (several, where the row is long) before reducing that vector."""
    extent = block.reduce[-1]
    width = largest_divisor(extent, machine.lanes(dtype_of(sch, block.rv)))
    if width == 1 or extent == width:
        return
    width = several(extent, width)
    _, lane = sch.split(sch.get_loops(block.rv)[-1], [None, width])
    sch.rfactor(lane, 1)


def _vectorise(sch: s_tir.Schedule, block: Block, machine: CpuMachine) -> None:
    """Vectors along the row; a block of partial sums keeps them innermost, below its reduction."""
    loops = sch.get_loops(block.rv)
    if block.reduce:
        _, lane, _, reduction = loops  # row, lane, the row again (extent 1), steps along the row
        sch.reorder(reduction, lane)
        sch.vectorize(lane)
        start = sch.decompose_reduction(block.rv, reduction)
        sch.vectorize(sch.get_loops(start)[-1])
        return
    lanes = machine.lanes(dtype_of(sch, block.rv))
    width = largest_divisor(block.spatial[-1], lanes)
    if width > 1 and (width == lanes or block.spatial[-1] <= 4 * lanes):  # LLVM makes full vectors of other rows
        _, lane = sch.split(loops[-1], [None, width])
        sch.vectorize(lane)
