"""Gradients of operators that read or write by index; equal indices add up, one after another."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt.graph.edit import AttributeValue
from graphopt.passes.training.gradients.context import Context, Gradients, shape_of


def gather(ctx: Context, node: ir.Node, dys: Sequence[ir.Value | None]) -> Gradients:
    """GatherGradient."""
    (data, indices), dy = node.inputs, dys[0]
    assert dy is not None
    shape = shape_of(data)
    axis = (node.attributes.get_int("axis", 0) or 0) % len(shape)
    return {0: lambda: ctx.result("GatherGradient", [dy, indices, ctx.ints(shape)], {"axis": axis}, shape=shape)}


def gather_elements(ctx: Context, node: ir.Node, dys: Sequence[ir.Value | None]) -> Gradients:
    """Each element goes back to where it was read."""
    (data, indices), dy = node.inputs, dys[0]
    assert dy is not None
    shape = shape_of(data)
    attributes: dict[str, AttributeValue] = {"axis": node.attributes.get_int("axis", 0) or 0, "reduction": "add"}
    return {0: lambda: ctx.result("ScatterElements", [ctx.zeros(shape, dy), indices, dy], attributes, shape=shape)}


def top_k(ctx: Context, node: ir.Node, dys: Sequence[ir.Value | None]) -> Gradients:
    """The values go back to their indices, which differ."""
    x, dy = node.inputs[0], dys[0]
    if dy is None:
        return {}
    shape = shape_of(x)
    axis = node.attributes.get_int("axis", -1)
    operands = [ctx.zeros(shape, dy), node.outputs[1], dy]
    return {0: lambda: ctx.result("ScatterElements", operands, {"axis": -1 if axis is None else axis}, shape=shape)}


def _lines(ctx: Context, indices: ir.Value, shape: Sequence[int], batch: int) -> tuple[ir.Value, int]:
    """GatherND's [.., k] indices as places among the first batch + k axes of `shape`, flat; and batch + k."""
    extents = shape_of(indices)
    depth = batch + extents[-1]
    inner = np.array(shape[batch:depth], np.int64)
    numbers = ctx.cast(indices, ir.DataType.INT64)
    counted = ctx.where(ctx.op("Less", numbers, 0), ctx.op("Add", numbers, ctx.constant(inner)), numbers)
    strides = np.array([math.prod(inner[place + 1 :].tolist()) for place in range(len(inner))], np.int64)
    places = ctx.sum(ctx.op("Mul", counted, ctx.constant(strides)), [len(extents) - 1])
    if batch:
        size = math.prod(inner.tolist())
        first = np.arange(math.prod(shape[:batch]), dtype=np.int64) * size
        own = first.reshape((*shape[:batch], *[1] * (len(extents) - 1 - batch)))
        places = ctx.op("Add", places, ctx.constant(own))
    return ctx.reshape(places, [math.prod(extents[:-1])]), depth


def gather_nd(ctx: Context, node: ir.Node, dys: Sequence[ir.Value | None]) -> Gradients:
    """A Gather of rows, once the indices are flat."""
    (data, indices), dy = node.inputs, dys[0]
    assert indices is not None
    assert dy is not None
    shape = shape_of(data)

    def emit() -> ir.Value:
        places, depth = _lines(ctx, indices, shape, node.attributes.get_int("batch_dims", 0) or 0)
        flat = (math.prod(shape[:depth]), math.prod(shape[depth:]))
        rows = ctx.reshape(dy, (shape_of(places)[0], flat[1]))
        sums = ctx.result("GatherGradient", [rows, places, ctx.ints(flat)], {"axis": 0}, shape=flat)
        return ctx.reshape(sums, shape)

    return {0: emit}


def scatter_check(node: ir.Node) -> str | None:
    """Values are written or added."""
    reduction = node.attributes.get_string("reduction", "none")
    return (
        None if reduction in ("none", "add") else f"reduction {reduction} has no gradient here; none and add have one"
    )


def scatter_elements(ctx: Context, node: ir.Node, dys: Sequence[ir.Value | None]) -> Gradients:
    """The data gets what was not overwritten, the updates what lies where they went."""
    (data, indices, updates), dy = node.inputs, dys[0]
    assert dy is not None
    assert updates is not None
    axis = {"axis": node.attributes.get_int("axis", 0) or 0}
    adds = node.attributes.get_string("reduction", "none") == "add"

    def of_data() -> ir.Value:
        if adds:
            return dy
        nothing = ctx.zeros(shape_of(updates), dy)
        return ctx.result("ScatterElements", [dy, indices, nothing], axis, shape=shape_of(data))

    return {
        0: of_data,
        2: lambda: ctx.result("GatherElements", [dy, indices], axis, shape=shape_of(updates)),
    }


def scatter_nd(ctx: Context, node: ir.Node, dys: Sequence[ir.Value | None]) -> Gradients:
    """As ScatterElements, by rows."""
    (data, indices, updates), dy = node.inputs, dys[0]
    assert dy is not None
    assert updates is not None
    adds = node.attributes.get_string("reduction", "none") == "add"

    def of_data() -> ir.Value:
        if adds:
            return dy
        nothing = ctx.zeros(shape_of(updates), dy)
        return ctx.result("ScatterND", [dy, indices, nothing], shape=shape_of(data))

    return {0: of_data, 2: lambda: ctx.result("GatherND", [dy, indices], shape=shape_of(updates))}
