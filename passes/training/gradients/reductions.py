"""Gradients of reductions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import onnx_ir as ir

from graphopt.graph.edit import array_of, ints
from graphopt.passes.training.gradients.context import Context, Gradients, shape_of


def _axes(node: ir.Node) -> list[int] | None:
    """The reduced axes; None where they are not constants."""
    rank = len(shape_of(node.inputs[0]))
    given = node.inputs[1] if len(node.inputs) > 1 else None
    listed = array_of(given)
    if given is not None and listed is None:
        return None
    axes = ints(node, "axes", []) if listed is None else [int(axis) for axis in listed.reshape(-1)]
    if not axes and node.attributes.get_int("noop_with_empty_axes", 0) == 1:
        return []
    return sorted({axis % rank for axis in axes}) if axes else list(range(rank))


def check(node: ir.Node) -> str | None:
    """The axes are constants."""
    return "its axes are not constants" if _axes(node) is None else None


def reduce(ctx: Context, node: ir.Node, dys: Sequence[ir.Value | None]) -> Gradients:
    """All reductions; equal maxima or minima share the gradient."""
    x, dy, axes, y = node.inputs[0], dys[0], _axes(node), node.outputs[0]
    assert x is not None
    assert dy is not None
    assert axes is not None
    shape = shape_of(x)
    wide = [1 if axis in axes else extent for axis, extent in enumerate(shape)]

    def emit() -> ir.Value:
        given = ctx.reshape(dy, wide)
        if node.op_type == "ReduceSum":
            return ctx.expand(given, shape)
        if node.op_type == "ReduceMean":
            count = math.prod(shape[axis] for axis in axes)
            return ctx.expand(ctx.op("Mul", given, 1.0 / max(count, 1)), shape)
        return _FACTORS[node.op_type](ctx, x, ctx.reshape(y, wide), given, axes)

    return {0: emit}


def _extreme(ctx: Context, x: ir.Value, y: ir.Value, dy: ir.Value, axes: Sequence[int]) -> ir.Value:
    reached = ctx.op("Equal", x, y)
    count = ctx.sum(ctx.cast(reached, dy.dtype), axes, keep=True)
    return ctx.where(reached, ctx.op("Div", dy, count), 0.0)


def _product(ctx: Context, x: ir.Value, y: ir.Value, dy: ir.Value, axes: Sequence[int]) -> ir.Value:
    """The product of the others: P / x without zeros, P at the only zero, 0 with more; P is that of the nonzero."""
    del y
    zero = ctx.op("Equal", x, 0.0)
    others = ctx.where(zero, 1.0, x)
    product = ctx.reduce("ReduceProd", others, axes, keep=True)
    zeros = ctx.sum(ctx.cast(zero, x.dtype), axes, keep=True)
    none, one = ctx.op("Equal", zeros, 0.0), ctx.op("Equal", zeros, 1.0)
    regular = ctx.where(none, ctx.op("Div", product, others), 0.0)
    return ctx.op("Mul", dy, ctx.where(ctx.op("And", zero, one), product, regular))


def _norm(ctx: Context, x: ir.Value, y: ir.Value, dy: ir.Value, axes: Sequence[int]) -> ir.Value:
    del axes
    return ctx.where(ctx.op("Equal", y, 0.0), 0.0, ctx.op("Div", ctx.op("Mul", dy, x), y))


def _log_sum(ctx: Context, x: ir.Value, y: ir.Value, dy: ir.Value, axes: Sequence[int]) -> ir.Value:
    del axes
    return ctx.expand(ctx.op("Mul", dy, ctx.op("Exp", ctx.op("Neg", y))), shape_of(x))


_FACTORS: dict[str, Callable[[Context, ir.Value, ir.Value, ir.Value, Sequence[int]], ir.Value]] = {
    "ReduceL1": lambda c, x, y, dy, axes: c.op("Mul", dy, c.op("Sign", x)),
    "ReduceL2": _norm,
    "ReduceLogSum": _log_sum,
    "ReduceLogSumExp": lambda c, x, y, dy, axes: c.op("Mul", dy, c.op("Exp", c.op("Sub", x, y))),
    "ReduceMax": _extreme,
    "ReduceMin": _extreme,
    "ReduceProd": _product,
    "ReduceSumSquare": lambda c, x, y, dy, axes: c.op("Mul", c.op("Mul", dy, 2.0), x),
}


def cumsum(ctx: Context, node: ir.Node, dys: Sequence[ir.Value | None]) -> Gradients:
    """The cumulative sum from the other end."""
    dy = dys[0]
    assert dy is not None
    attributes = {
        "exclusive": node.attributes.get_int("exclusive", 0) or 0,
        "reverse": 1 - (node.attributes.get_int("reverse", 0) or 0),
    }
    return {0: lambda: ctx.result("CumSum", [dy, node.inputs[1]], attributes, shape=shape_of(dy))}
