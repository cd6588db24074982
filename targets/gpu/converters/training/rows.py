"""Gradients of Softmax and LogSoftmax: a sum for each row, then all elements."""

from __future__ import annotations

import math

from tvm import te, tirx
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


def softmax_gradient(logarithm: bool) -> Converter:
    """SoftmaxGradient, or LogSoftmaxGradient, along any axis."""

    def convert(c: Context, inputs: Inputs) -> Outputs:
        dy, y = inputs
        shape, dtype = shape_of(y), dtype_of(y)
        if dtype not in ("float32", "float64") or dtype_of(dy) != dtype or not shape or 0 in shape:
            return NotImplemented
        axis = c.integer("axis", -1) % len(shape)
        flat = math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])

        def summed(g: te.Tensor, v: te.Tensor) -> te.Tensor:
            r = te.reduce_axis((0, flat[1]), "r")

            def element(i: Expr, k: Expr) -> Expr:
                return te.sum(g[i, r, k] if logarithm else g[i, r, k] * v[i, r, k], axis=[r])

            return te.compute((flat[0], flat[2]), element, name="sums")

        def finish(g: te.Tensor, v: te.Tensor, total: te.Tensor) -> te.Tensor:
            def element(i: Expr, j: Expr, k: Expr) -> Expr:
                if logarithm:
                    return g[i, j, k] - tirx.exp(v[i, j, k]) * total[i, k]
                return v[i, j, k] * (g[i, j, k] - total[i, k])

            return te.compute(flat, element, name="dx")

        operands = c.reshape(dy, flat), c.reshape(y, flat)
        sums = c.te("row_sums", summed, *operands, pattern=OPAQUE)
        return c.reshape(c.te("softmax_gradient", finish, *operands, sums, pattern=BROADCAST), shape)

    return convert
