"""Batch statistics, and the gradients of normalizations: sums by blocks of threads, then a kernel over all elements."""

from __future__ import annotations

import math
from collections.abc import Callable

from tvm import te, tirx
from tvm.ir import Expr

from graphopt.targets.common.converters.base import BROADCAST, OPAQUE, Context, Inputs, Outputs, dtype_of, shape_of
from graphopt.targets.common.converters.training.normalization import from_sums, row
from graphopt.targets.common.kernels.blocks import const, dims

WORKING = ("float32", "float64")
"""Types of what is summed."""


def batch_statistics(c: Context, inputs: Inputs) -> Outputs:
    """BatchStatistics in two passes: the mean, then the squared distances from it."""
    x = inputs[0]
    shape, dtype = shape_of(x), dtype_of(x)
    if dtype not in WORKING or 0 in shape:
        return NotImplemented
    flat = c.reshape(x, (*shape[:2], math.prod(shape[2:])))
    mean = c.te("batch_mean", lambda v: _channel_means(v, lambda *at: v[at].astype("float64")), flat, pattern=OPAQUE)

    def squares(v: te.Tensor, m: te.Tensor) -> te.Tensor:
        return _channel_means(v, lambda n, i, p: (v[n, i, p] - m[i]) * (v[n, i, p] - m[i]))

    return [mean, c.te("batch_variance", squares, flat, mean, pattern=OPAQUE)]


def _channel_means(x: te.Tensor, value: Callable[[Expr, Expr, Expr], Expr]) -> te.Tensor:
    """[C]: the mean of value(n, c, p) over the images and places of x[N, C, P]."""
    n, channels, plane = dims(x)
    rn, rp = te.reduce_axis((0, n), "n"), te.reduce_axis((0, plane), "p")
    sums = te.compute((channels,), lambda i: te.sum(value(rn, i, rp), axis=[rn, rp]), name="sums")
    size = const(n * plane, sums.dtype)
    return te.compute((channels,), lambda i: (sums[i] / size).astype(x.dtype), name="mean")


def batch_norm_gradient(c: Context, inputs: Inputs) -> Outputs:
    """BatchNormalizationGradient: both sums in one kernel, then dX."""
    dy, x, _, mean, inv_std = inputs
    shape, dtype = shape_of(x), dtype_of(x)
    if dtype not in WORKING or 0 in shape or any(dtype_of(each) != dtype for each in inputs):
        return NotImplemented
    n, channels, plane = shape[0], shape[1], math.prod(shape[2:])

    def summed(g: te.Tensor, v: te.Tensor, m: te.Tensor, s: te.Tensor) -> te.Tensor:
        rn, rp = te.reduce_axis((0, n), "n"), te.reduce_axis((0, plane), "p")

        def element(k: Expr, i: Expr) -> Expr:
            at = rn, i, rp
            along = g[at] * ((v[at] - m[i]) * s[i])
            return te.sum(tirx.if_then_else(k == 0, g[at], along), axis=[rn, rp])

        return te.compute((2, channels), element, name="sums")

    flat = n, channels, plane
    operands = c.reshape(dy, flat), c.reshape(x, flat), mean, inv_std
    sums = c.te("channel_sums", summed, *operands, pattern=OPAQUE)
    return from_sums(c, inputs, sums, n * plane, lambda at: at[1])


def layer_norm_kept(c: Context, inputs: Inputs) -> Outputs:
    """LayerNormalization whose mean and deviation are used: two sums for each row, then all elements."""
    x, weight = inputs[:2]
    bias = inputs[2] if len(inputs) > 2 else None
    shape, dtype = shape_of(x), dtype_of(x)
    axis = c.integer("axis", -1) % max(len(shape), 1)
    n, count = math.prod(shape[axis:]), math.prod(shape[:axis])
    if dtype not in WORKING or 0 in shape or math.prod(shape_of(weight)) != n:
        return NotImplemented
    if (dtype == "float64" and c.integer("stash_type", 1) == 1) or (
        bias is not None and math.prod(shape_of(bias)) != n
    ):
        return NotImplemented
    flat, epsilon = c.reshape(x, (count, n)), const(c.real("epsilon", 1e-5), dtype)
    size, one = const(n, dtype), const(1, dtype)

    def means(v: te.Tensor) -> te.Tensor:
        return _row_sums(v, lambda i, j: v[i, j].astype("float64"), lambda total: total / const(n, "float64"))

    mean = c.te("row_means", means, flat, pattern=OPAQUE)

    def deviations(v: te.Tensor, m: te.Tensor) -> te.Tensor:
        return _row_sums(
            v,
            lambda i, j: (v[i, j] - m[i]) * (v[i, j] - m[i]),
            lambda total: one / tirx.sqrt(total / size + epsilon),
        )

    inverse = c.te("row_deviations", deviations, flat, mean, pattern=OPAQUE)

    def finish(v: te.Tensor, m: te.Tensor, s: te.Tensor, w: te.Tensor, b: te.Tensor | None = None) -> te.Tensor:
        def element(i: Expr, j: Expr) -> Expr:
            scaled = (v[i, j] - m[i]) * s[i] * w[j]
            return scaled if b is None else scaled + b[j]

        return te.compute((count, n), element, name="layer_norm")

    args = [flat, mean, inverse, c.reshape(weight, (n,)), *([] if bias is None else [c.reshape(bias, (n,))])]
    y = c.reshape(c.te("layer_norm", finish, *args, pattern=BROADCAST), shape)
    outer = (*shape[:axis], *(1,) * (len(shape) - axis))
    return [y, *(c.reshape(each, outer) for each in (mean, inverse)[: len(c.node.outputs) - 1])]


def _row_sums(x: te.Tensor, value: Callable[[Expr, Expr], Expr], finish: Callable[[Expr], Expr]) -> te.Tensor:
    """[R]: finish(sum of value(row, column)) of x[R, n]."""
    rows, n = dims(x)
    r = te.reduce_axis((0, n), "column")
    sums = te.compute((rows,), lambda i: te.sum(value(i, r), axis=[r]), name="sums")
    return te.compute((rows,), lambda i: finish(sums[i]).astype(x.dtype), name="finish")


def layer_norm_gradient(c: Context, inputs: Inputs) -> Outputs:
    """LayerNormalizationGradient: two sums for each row, two for each column, then dX."""
    dy, x, scale, mean, inverse = inputs
    shape, dtype = shape_of(x), dtype_of(x)
    axis = c.integer("axis", -1) % max(len(shape), 1)
    n, count = math.prod(shape[axis:]), math.prod(shape[:axis])
    if dtype not in WORKING or 0 in shape or any(dtype_of(each) != dtype for each in inputs):
        return NotImplemented
    if math.prod(shape_of(scale)) != n or math.prod(shape_of(mean)) != count or math.prod(shape_of(inverse)) != count:
        return NotImplemented
    vectors = c.reshape(scale, (n,)), c.reshape(mean, (count,)), c.reshape(inverse, (count,))
    operands = c.reshape(dy, (count, n)), c.reshape(x, (count, n)), *vectors
    share = const(1.0 / n, dtype)

    def of_rows(g: te.Tensor, v: te.Tensor, w: te.Tensor, m: te.Tensor, s: te.Tensor) -> te.Tensor:
        r = te.reduce_axis((0, n), "column")

        def element(k: Expr, i: Expr) -> Expr:
            scaled = g[i, r] * w[r]
            return te.sum(tirx.if_then_else(k == 0, scaled, scaled * ((v[i, r] - m[i]) * s[i])), axis=[r])

        return te.compute((2, count), element, name="sums")

    def of_columns(g: te.Tensor, v: te.Tensor, _: te.Tensor, m: te.Tensor, s: te.Tensor) -> te.Tensor:
        r = te.reduce_axis((0, count), "row")

        def element(k: Expr, j: Expr) -> Expr:
            return te.sum(tirx.if_then_else(k == 0, g[r, j], g[r, j] * ((v[r, j] - m[r]) * s[r])), axis=[r])

        return te.compute((2, n), element, name="sums")

    rows = c.te("row_sums", of_rows, *operands, pattern=OPAQUE)
    columns = c.te("column_sums", of_columns, *operands, pattern=OPAQUE)

    def finish(g: te.Tensor, v: te.Tensor, w: te.Tensor, m: te.Tensor, s: te.Tensor, total: te.Tensor) -> te.Tensor:
        def element(i: Expr, j: Expr) -> Expr:
            centered = (v[i, j] - m[i]) * s[i]
            return s[i] * (g[i, j] * w[j] - total[0, i] * share - centered * (total[1, i] * share))

        return te.compute((count, n), element, name="dx")

    dx = c.te("layer_norm_gradient", finish, *operands, rows, pattern=BROADCAST)
    return [c.reshape(dx, shape), *(c.reshape(row(c, columns, k), shape[axis:]) for k in (1, 0))]
