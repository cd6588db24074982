"""Gradients of pools: the maximum is remembered by its place in the window."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt.passes.training.gradients.context import Context, Gradients, Kept, shape_of
from graphopt.passes.training.gradients.conv import window_of

_MOST_TAPS = 256
"""An index of one byte tells as many apart."""


def keep_argmax(ctx: Context, node: ir.Node) -> None:
    """Y = MaxPool(X)  ->  Y, A = MaxPoolArgmax(X); windows above 256 elements keep the places in all of X (int64)."""
    x, window, y = node.inputs[0], window_of(node), node.outputs[0]
    assert x is not None
    assert window is not None
    ceil = node.attributes.get_int("ceil_mode", 0) or 0
    listed = len(node.outputs) > 1
    if listed and (node.attributes.get_int("storage_order", 0) or 0) == 0:
        ctx.kept[node] = Kept((node.outputs[1],))
    elif listed or math.prod(window.kernel) > _MOST_TAPS:
        shape = shape_of(y)
        pooled, places = ctx.results(
            "MaxPool",
            [x],
            {**window.attributes, "ceil_mode": ceil},
            outputs=[(shape, y.dtype), (shape, ir.DataType.INT64)],
        )
        ctx.kept[node] = Kept((places,), {} if listed else {0: pooled})
    else:
        shape = shape_of(y)
        pooled, argmax = ctx.results(
            "MaxPoolArgmax",
            [x],
            {**window.attributes, "ceil_mode": ceil},
            outputs=[(shape, y.dtype), (shape, ir.DataType.UINT8)],
        )
        ctx.kept[node] = Kept((argmax,), {0: pooled})


def max_pool(ctx: Context, node: ir.Node, dys: Sequence[ir.Value | None]) -> Gradients:
    """The first maximum of a window gets its gradient."""
    x, window, dy = node.inputs[0], window_of(node), dys[0]
    (places,) = ctx.kept[node].values
    if dy is None:
        return {}
    assert x is not None
    assert window is not None
    shape = shape_of(x)

    def by_argmax() -> ir.Value:
        attributes = {**window.attributes, "ceil_mode": node.attributes.get_int("ceil_mode", 0) or 0}
        return ctx.result("MaxPoolGradient", [dy, places, ctx.ints(shape)], attributes, shape=shape)

    def by_place() -> ir.Value:
        count, listed = math.prod(shape), [math.prod(shape_of(dy))]
        operands = [ctx.zeros([count], dy), ctx.reshape(places, listed), ctx.reshape(dy, listed)]
        sums = ctx.result("ScatterElements", operands, {"axis": 0, "reduction": "add"}, shape=[count])
        return ctx.reshape(sums, shape)

    return {0: by_argmax if places.dtype == ir.DataType.UINT8 else by_place}


def average_pool(ctx: Context, node: ir.Node, dys: Sequence[ir.Value | None]) -> Gradients:
    """Each element of a window gets an equal share."""
    x, window, dy = node.inputs[0], window_of(node), dys[0]
    assert x is not None
    assert dy is not None
    assert window is not None
    attributes = {
        **window.attributes,
        "ceil_mode": node.attributes.get_int("ceil_mode", 0) or 0,
        "count_include_pad": node.attributes.get_int("count_include_pad", 0) or 0,
    }
    shape = shape_of(x)
    return {0: lambda: ctx.result("AveragePoolGradient", [dy, ctx.ints(shape)], attributes, shape=shape)}


def global_average_pool(ctx: Context, node: ir.Node, dys: Sequence[ir.Value | None]) -> Gradients:
    """Every element of the plane gets an equal share."""
    x, dy = node.inputs[0], dys[0]
    assert dy is not None
    shape = shape_of(x)
    return {0: lambda: ctx.expand(ctx.op("Mul", dy, 1.0 / max(math.prod(shape[2:]), 1)), shape)}


def global_max_pool(ctx: Context, node: ir.Node, dys: Sequence[ir.Value | None]) -> Gradients:
    """The first maximum of the plane gets the gradient."""
    x, dy = node.inputs[0], dys[0]
    assert x is not None
    assert dy is not None

    def emit() -> ir.Value:
        shape = shape_of(x)
        lead, size = shape[:2], math.prod(shape[2:])
        first = ctx.result(
            "ArgMax", [ctx.reshape(x, (*lead, size))], {"axis": 2}, shape=(*lead, 1), dtype=ir.DataType.INT64
        )
        is_first = ctx.op("Equal", first, ctx.constant(np.arange(size, dtype=np.int64)))
        return ctx.reshape(ctx.where(is_first, ctx.reshape(dy, (*lead, 1)), 0.0), shape)

    return {0: emit}
