"""Gradients of Softmax, LogSoftmax and LayerNormalization, and LayerNormalization that keeps its statistics."""

from __future__ import annotations

import math

from tvm import relax, te
from tvm.ir import Expr

from graphopt.targets.common.converters.base import (
    BROADCAST,
    OPAQUE,
    Context,
    Converter,
    Inputs,
    Outputs,
    dtype_of,
    shape_of,
)
from graphopt.targets.cpu.converters.rows import layer_norm
from graphopt.targets.cpu.kernels.training import rows


def softmax_gradient(logarithm: bool) -> Converter:
    """SoftmaxGradient, or LogSoftmaxGradient; rows are kernels of their own, other axes sums and products."""

    def convert(c: Context, inputs: Inputs) -> Outputs:
        dy, y = inputs
        shape = shape_of(y)
        if dtype_of(y) not in ("float32", "float64") or not shape or 0 in shape:
            return NotImplemented
        axis = c.integer("axis", -1) % len(shape)
        if axis == len(shape) - 1:
            flat, lanes = (math.prod(shape[:-1]), shape[-1]), c.machine.lanes(dtype_of(y))
            kernel = rows.log_softmax if logarithm else rows.softmax
            arguments = c.reshape(dy, flat), c.reshape(y, flat)
            return c.reshape(
                c.te("softmax_gradient", lambda g, v: kernel(g, v, lanes), *arguments, pattern=OPAQUE), shape
            )
        emit, op = c.builder.emit, relax.op
        if logarithm:
            return emit(op.subtract(dy, emit(op.multiply(emit(op.exp(y)), emit(op.sum(dy, axis, keepdims=True))))))
        mean = emit(op.sum(emit(op.multiply(dy, y)), axis, keepdims=True))
        return emit(op.multiply(y, emit(op.subtract(dy, mean))))

    return convert


def layer_norm_kept(c: Context, inputs: Inputs) -> Outputs:
    """LayerNormalization of float32; with its mean and deviation in one more pass over the rows."""
    plain = layer_norm(c, inputs)
    if plain is not NotImplemented:
        return plain
    x, weight = inputs[:2]
    bias = inputs[2] if len(inputs) > 2 else None
    shape = shape_of(x)
    axis = c.integer("axis", -1) % max(len(shape), 1)
    n, count = math.prod(shape[axis:]), math.prod(shape[:axis])
    if dtype_of(x) != "float32" or 0 in shape or math.prod(shape_of(weight)) != n:
        return NotImplemented
    epsilon, lanes = c.real("epsilon", 1e-5), c.machine.lanes("float32")
    flat = c.reshape(x, (count, n))
    kept = c.te("row_statistics", lambda v: rows.statistics(v, epsilon, lanes), flat, pattern=OPAQUE)
    args = [flat, kept, c.reshape(weight, (n,)), *([] if bias is None else [c.reshape(bias, (n,))])]

    def finish(v: te.Tensor, s: te.Tensor, w: te.Tensor, b: te.Tensor | None = None) -> te.Tensor:
        def element(i: Expr, j: Expr) -> Expr:
            scaled = (v[i, j] - s[i, 0]) * s[i, 1] * w[j]
            return scaled if b is None else scaled + b[j]

        return te.compute((count, n), element, name="layer_norm")

    y = c.reshape(c.te("layer_norm", finish, *args, pattern=BROADCAST), shape)
    outer = (*shape[:axis], *(1,) * (len(shape) - axis))
    return [y, *(c.reshape(_column(c, kept, k), outer) for k in range(len(c.node.outputs) - 1))]


def _column(c: Context, matrix: relax.Expr, number: int) -> relax.Expr:
    height = shape_of(matrix)[0]
    return c.te(
        "column", lambda v: te.compute((height,), lambda i: v[i, number], name="column"), matrix, pattern=OPAQUE
    )


def layer_norm_gradient(c: Context, inputs: Inputs) -> Outputs:
    """LayerNormalizationGradient: dX row by row; dScale and dB as sums over rows."""
    dy, x, scale, mean, inverse = inputs
    shape, dtype = shape_of(x), dtype_of(x)
    axis = c.integer("axis", -1) % max(len(shape), 1)
    n, count = math.prod(shape[axis:]), math.prod(shape[:axis])
    if dtype not in ("float32", "float64") or 0 in shape or any(dtype_of(each) != dtype for each in inputs):
        return NotImplemented
    if math.prod(shape_of(scale)) != n or math.prod(shape_of(mean)) != count or math.prod(shape_of(inverse)) != count:
        return NotImplemented
    lanes = c.machine.lanes(dtype)
    g, v = c.reshape(dy, (count, n)), c.reshape(x, (count, n))
    m, s = c.reshape(mean, (count,)), c.reshape(inverse, (count,))
    dx = c.te(
        "layer_norm_gradient",
        lambda a, b, w, center, factor: rows.layer_norm(a, b, w, center, factor, lanes),
        *(g, v, c.reshape(scale, (n,)), m, s),
        pattern=OPAQUE,
    )

    def projected(a: te.Tensor, b: te.Tensor, center: te.Tensor, factor: te.Tensor) -> te.Tensor:
        return rows.column_parts(lambda i, j: a[i, j] * ((b[i, j] - center[i]) * factor[i]), count, n)

    of_scale = c.te("column_parts", projected, g, v, m, s, pattern=OPAQUE)
    of_bias = c.te("column_parts", lambda a: rows.column_parts(lambda i, j: a[i, j], count, n), g, pattern=OPAQUE)
    sums = [c.te("columns", rows.columns, each, pattern=OPAQUE) for each in (of_scale, of_bias)]
    return [c.reshape(dx, shape), *(c.reshape(each, shape[axis:]) for each in sums)]
