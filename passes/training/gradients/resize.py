"""The gradient of Resize: interpolation is linear and separable, so it goes back by the transposed weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt.graph.edit import array_of, ints
from graphopt.passes.training.gradients.context import Context, Gradients, shape_of
from graphopt.passes.training.gradients.moves import spread

_PLACES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
_ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


def check(node: ir.Node) -> str | None:
    """Nearest and linear, in the usual coordinates."""
    mode = node.attributes.get_string("mode", "nearest")
    places = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    if mode not in ("nearest", "linear"):
        return f"mode {mode} has no gradient here; nearest and linear have one"
    if places not in _PLACES:
        return f"coordinates {places} have no gradient here; {', '.join(_PLACES)} have one"
    if mode == "nearest" and node.attributes.get_string("nearest_mode", _ROUNDINGS[0]) not in _ROUNDINGS:
        return "its rounding is unknown"
    if node.attributes.get_int("antialias", 0) or node.attributes.get_int("exclude_outside", 0):
        return "antialias and exclude_outside have no gradient here"
    if node.attributes.get_string("keep_aspect_ratio_policy", "stretch") != "stretch":
        return "a kept aspect ratio has no gradient here; give the sizes"
    scales = node.inputs[2] if len(node.inputs) > 2 else None
    return "its scales are not constants" if scales is not None and array_of(scales) is None else None


def _coordinates(node: ir.Node, axis: int, extent: int, out: int) -> NDArray[np.float64]:
    """The place in the input of each element of the result along `axis`, in float32 as ONNX Runtime computes it."""
    scales = array_of(node.inputs[2]) if len(node.inputs) > 2 else None
    rank = len(shape_of(node.inputs[0]))
    axes = [each % rank for each in ints(node, "axes", list(range(rank)))]
    scale = np.float32(out) / np.float32(extent)
    if scales is not None and scales.size and axis in axes:
        scale = np.float32(scales[axes.index(axis)])
    number = np.arange(out, dtype=np.float32)
    mode = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    if mode == "asymmetric":
        return (number / scale).astype(np.float64)
    if mode == "align_corners":
        return (number * np.float32(extent - 1) / np.float32(max(out - 1, 1))).astype(np.float64)
    if mode == "pytorch_half_pixel" and out == 1:
        return np.zeros(1)
    half = np.float32(0.5)
    return ((number + half) / scale - half).astype(np.float64)


def _nearest(node: ir.Node, places: NDArray[np.float64], extent: int) -> list[int]:
    mode = node.attributes.get_string("nearest_mode", "round_prefer_floor")
    rounded = {
        "round_prefer_floor": np.ceil(places - 0.5),
        "round_prefer_ceil": np.floor(places + 0.5),
        "floor": np.floor(places),
        "ceil": np.ceil(places),
    }[str(mode)]
    return [int(place) for place in np.clip(rounded, 0, extent - 1)]


def _weights(places: NDArray[np.float64], extent: int) -> NDArray[np.float64]:
    """[out, extent]: two neighbours for each element of the result; beyond the edges the edge."""
    inside = np.clip(places, 0, extent - 1)
    low = np.floor(inside).astype(int)
    high = np.minimum(low + 1, extent - 1)
    matrix = np.zeros((len(places), extent))
    rows = np.arange(len(places))
    np.add.at(matrix, (rows, low), 1 - (inside - low))
    np.add.at(matrix, (rows, high), inside - low)
    return matrix


def resize(ctx: Context, node: ir.Node, dys: Sequence[ir.Value | None]) -> Gradients:
    """Along each axis: GatherGradient by the nearest elements, or a product with the weights."""
    x, y, dy = node.inputs[0], node.outputs[0], dys[0]
    assert x is not None
    assert dy is not None
    nearest = node.attributes.get_string("mode", "nearest") == "nearest"

    def emit() -> ir.Value:
        value = dy
        for axis, (extent, out) in enumerate(zip(shape_of(x), shape_of(y), strict=True)):
            places = _coordinates(node, axis, extent, out)
            if nearest:
                sources = _nearest(node, places, extent)
                if sources == list(range(extent)):
                    continue
                repeated = _repeats(sources, extent)
                value = (
                    spread(ctx, value, axis, sources, extent)
                    if repeated is None
                    else _blocks(ctx, value, axis, extent, repeated)
                )
                continue
            matrix = _weights(places, extent)
            if matrix.shape == (extent, extent) and np.array_equal(matrix, np.eye(extent)):
                continue
            value = _multiplied(ctx, value, axis, matrix)
        return value

    return {0: emit}


def _repeats(sources: Sequence[int], extent: int) -> int | None:
    """How often every element is repeated, if all are equally often."""
    count = len(sources) // extent
    return count if list(sources) == [place for place in range(extent) for _ in range(count)] else None


def _blocks(ctx: Context, value: ir.Value, axis: int, extent: int, count: int) -> ir.Value:
    shape = shape_of(value)
    split = (*shape[:axis], extent, count, *shape[axis + 1 :])
    return ctx.sum(ctx.reshape(value, split), [axis + 1])


def _multiplied(ctx: Context, value: ir.Value, axis: int, matrix: NDArray[np.float64]) -> ir.Value:
    """The sum over `axis` with weights [extent of the axis, new extent]."""
    assert value.dtype is not None
    rank = len(shape_of(value))
    weights = ctx.constant(matrix.astype(value.dtype.numpy()))
    order = [*(each for each in range(rank) if each != axis), axis]
    turned = ctx.transpose(value, order)
    product = ctx.result("MatMul", [turned, weights], shape=(*shape_of(turned)[:-1], matrix.shape[1]))
    return ctx.transpose(product, [order.index(each) for each in range(rank)])
