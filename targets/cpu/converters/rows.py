"""Softmax and layer normalization, row by row."""

from __future__ import annotations

import math

from tvm import relax, tirx
from tvm.ir import Expr

from graphopt.targets.common.converters.base import (
    OPAQUE,
    Context,
    Converter,
    Inputs,
    Outputs,
    dtype_of,
    shape_of,
)
from graphopt.targets.cpu.kernels import rowwise


def softmax(logarithm: bool) -> Converter:
    """Softmax, or LogSoftmax, along the last axis."""

    def convert(c: Context, inputs: Inputs) -> Outputs:
        x = inputs[0]
        shape = shape_of(x)
        axis = c.integer("axis", -1) % max(len(shape), 1)
        if dtype_of(x) not in ("float32", "float64") or not shape or 0 in shape or axis != len(shape) - 1:
            return NotImplemented
        flat = c.reshape(x, (math.prod(shape[:-1]), shape[-1]))
        return c.reshape(_of_rows(c, flat, logarithm), shape)

    return convert


def log_softmax(c: Context, rows: relax.Expr) -> relax.Expr:
    """LogSoftmax of rows [N, C]."""
    return _of_rows(c, rows, True)


def _of_rows(c: Context, rows: relax.Expr, logarithm: bool) -> relax.Expr:
    lanes = c.machine.lanes(dtype_of(rows))
    return c.te("softmax", lambda v: rowwise.softmax(v, lanes, logarithm=logarithm), rows, pattern=OPAQUE)


def layer_norm(c: Context, inputs: Inputs) -> Outputs:
    """LayerNormalization of float32 without its outputs for the mean and the deviation."""
    x, weight = inputs[:2]
    bias = inputs[2] if len(inputs) > 2 else None
    shape = shape_of(x)
    axis = c.integer("axis", -1) % max(len(shape), 1)
    n = math.prod(shape[axis:])
    used = [o for o in c.node.outputs[1:] if o.uses() or o.is_graph_output()]
    if dtype_of(x) != "float32" or 0 in shape or used or math.prod(shape_of(weight)) != n:
        return NotImplemented
    epsilon = c.real("epsilon", 1e-5)
    flat = c.reshape(x, (math.prod(shape[:axis]), n))
    args = [flat, c.reshape(weight, (n,)), *([] if bias is None else [c.reshape(bias, (n,))])]
    y = c.te("layer_norm", lambda v, w, b=None: rowwise.layer_norm(v, w, b, epsilon), *args, pattern=OPAQUE)
    return [c.reshape(y, shape), *(None for _ in c.node.outputs[1:])]


def channel_norm(c: Context, inputs: Inputs) -> Outputs:
    """InstanceNormalization, and GroupNormalization with a weight for each channel (opset 21), of x[N, C, ...]."""
    x, weight, bias = inputs
    shape = shape_of(x)
    if dtype_of(x) != "float32" or len(shape) < 2 or 0 in shape or shape_of(weight) != (shape[1],):
        return NotImplemented
    groups = c.integer("num_groups", 1) if c.node.op_type == "GroupNormalization" else shape[1]
    plane, channels = math.prod(shape[2:]), shape[1] // groups
    epsilon = c.real("epsilon", 1e-5)

    def place(row: Expr, j: Expr) -> Expr:
        inside = tirx.floordiv(j, plane) if channels > 1 else 0
        return tirx.floormod(row, groups) * channels + inside

    flat = c.reshape(x, (shape[0] * groups, channels * plane))
    y = c.te(
        "channel_norm", lambda v, w, b: rowwise.layer_norm(v, w, b, epsilon, place), flat, weight, bias, pattern=OPAQUE
    )
    return c.reshape(y, shape)
