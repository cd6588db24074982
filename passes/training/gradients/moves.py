"""Gradients of operators that move data: the gradient is moved back."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt.graph.edit import array_of, ints
from graphopt.passes.training.gradients.context import Context, Gradients, Thunk, shape_of


def reshape(ctx: Context, node: ir.Node, dys: Sequence[ir.Value | None]) -> Gradients:
    """Reshape, Flatten, Squeeze, Unsqueeze."""
    x, dy = node.inputs[0], dys[0]
    assert dy is not None
    return {0: lambda: ctx.reshape(dy, shape_of(x))}


def transpose(ctx: Context, node: ir.Node, dys: Sequence[ir.Value | None]) -> Gradients:
    """The inverse permutation."""
    dy = dys[0]
    assert dy is not None
    rank = len(shape_of(dy))
    perm = ints(node, "perm", list(reversed(range(rank))))
    return {0: lambda: ctx.transpose(dy, [perm.index(axis) for axis in range(rank)])}


def expand(ctx: Context, node: ir.Node, dys: Sequence[ir.Value | None]) -> Gradients:
    """The sum over the axes that were repeated."""
    x, dy = node.inputs[0], dys[0]
    assert x is not None
    assert dy is not None
    return {0: lambda: ctx.unbroadcast(dy, x)}


def tile(ctx: Context, node: ir.Node, dys: Sequence[ir.Value | None]) -> Gradients:
    """The sum of all copies."""
    x, dy = node.inputs[0], dys[0]
    assert dy is not None
    shape, tiled = shape_of(x), shape_of(dy)
    split: list[int] = []
    for extent, whole in zip(shape, tiled, strict=True):
        split += [whole // max(extent, 1), extent]
    return {0: lambda: ctx.reshape(ctx.sum(ctx.reshape(dy, split), range(0, 2 * len(shape), 2)), shape)}


def concat(ctx: Context, node: ir.Node, dys: Sequence[ir.Value | None]) -> Gradients:
    """Each operand gets its slice."""
    dy = dys[0]
    assert dy is not None
    axis = (node.attributes.get_int("axis", 0) or 0) % len(shape_of(dy))
    gradients: dict[int, Thunk] = {}
    start = 0

    def part(begin: int, shape: tuple[int, ...]) -> Thunk:
        bounds = ([begin], [begin + shape[axis]], [axis])
        return lambda: ctx.result("Slice", [dy, *map(ctx.ints, bounds)], shape=shape)

    for place, value in enumerate(node.inputs):
        shape = shape_of(value)
        gradients[place] = part(start, shape)
        start += shape[axis]
    return gradients


def split(ctx: Context, node: ir.Node, dys: Sequence[ir.Value | None]) -> Gradients:
    """The parts are joined; zeros stand for those that nobody uses."""
    x = node.inputs[0]
    assert x is not None
    shape = shape_of(x)
    axis = (node.attributes.get_int("axis", 0) or 0) % len(shape)

    def emit() -> ir.Value:
        parts = [
            ctx.zeros(shape_of(output), x) if dy is None else dy for dy, output in zip(dys, node.outputs, strict=True)
        ]
        return parts[0] if len(parts) == 1 else ctx.result("Concat", parts, {"axis": axis}, shape=shape)

    return {0: emit}


def _places(node: ir.Node) -> dict[int, range] | None:
    """Axis -> the elements that a Slice takes, in order; None unless its bounds are constants."""
    shape = shape_of(node.inputs[0])
    given = [array_of(value) for value in node.inputs[1:]]
    starts, ends, axes, steps = ([*given, None, None])[:4]
    if (
        starts is None
        or ends is None
        or any(array is None for array, value in zip(given, node.inputs[1:], strict=True) if value is not None)
    ):
        return None
    count = starts.size
    listed = np.arange(count) if axes is None else axes
    each = np.ones(count, np.int64) if steps is None else steps
    return {
        int(axis) % len(shape): range(*slice(int(start), int(end), int(step)).indices(extent))
        for axis, start, end, step in zip(listed, starts, ends, each, strict=True)
        for extent in (shape[int(axis)],)
    }


def slice_check(node: ir.Node) -> str | None:
    """The bounds are constants."""
    return "its bounds are not constants" if _places(node) is None else None


def slices(ctx: Context, node: ir.Node, dys: Sequence[ir.Value | None]) -> Gradients:
    """Zeros around what was sliced; steps other than 1 add by index, axis by axis.

    Slices along one axis wait for the others of the same value (`joined`).
    """
    x, dy, places = node.inputs[0], dys[0], _places(node)
    assert x is not None
    assert dy is not None
    assert places is not None
    shape = shape_of(x)
    cut = {axis: taken for axis, taken in places.items() if taken != range(shape[axis])}

    def emit() -> ir.Value | None:
        if not all(shape_of(dy)):
            return None
        if len(cut) == 1 and all(taken.step == 1 for taken in cut.values()):
            ((axis, taken),) = cut.items()
            ctx.slices.setdefault(x, []).append((node, axis, taken, dy))
            return None
        value = dy
        for axis, taken in cut.items():
            if taken.step != 1:
                value = spread(ctx, value, axis, list(taken), shape[axis])
        return _padded(ctx, value, {axis: taken for axis, taken in cut.items() if taken.step == 1}, shape)

    return {0: emit}


def _padded(ctx: Context, value: ir.Value, cut: dict[int, range], shape: tuple[int, ...]) -> ir.Value:
    begins = [cut[axis].start if axis in cut else 0 for axis in range(len(shape))]
    ends = [shape[axis] - cut[axis].stop if axis in cut else 0 for axis in range(len(shape))]
    return pad_zeros(ctx, value, begins, ends)


def joined(ctx: Context, x: ir.Value) -> ir.Value:
    """The gradient of `x` by its slices: a Concat where they lie side by side along one axis, else a sum."""
    parts = ctx.slices.pop(x)
    shape = shape_of(x)
    ordered = sorted(parts, key=lambda part: part[2].start)
    node, axis, _, _ = ordered[0]
    apart = all(before[2].stop <= after[2].start for before, after in itertools.pairwise(ordered))
    with ctx.of(node):
        if len(parts) == 1 or not apart or any(part[1] != axis for part in parts):
            total: ir.Value | None = None
            for _, own, taken, dy in parts:
                wide = _padded(ctx, dy, {own: taken}, shape)
                total = wide if total is None else ctx.op("Add", total, wide)
            assert total is not None
            return total
        pieces, end = [], 0
        for _, _, taken, dy in [*ordered, (node, axis, range(shape[axis], shape[axis]), x)]:
            if taken.start > end:
                pieces.append(ctx.zeros((*shape[:axis], taken.start - end, *shape[axis + 1 :]), x))
            if len(taken):
                pieces.append(dy)
            end = taken.stop
        return ctx.result("Concat", pieces, {"axis": axis}, shape=shape)


def pad_zeros(ctx: Context, value: ir.Value, begins: Sequence[int], ends: Sequence[int]) -> ir.Value:
    """Zeros around `value`; negative counts cut."""
    if not any(begins) and not any(ends):
        return value
    shape = [extent + a + b for extent, a, b in zip(shape_of(value), begins, ends, strict=True)]
    return ctx.result("Pad", [value, ctx.ints([*begins, *ends])], shape=shape)


def spread(ctx: Context, value: ir.Value, axis: int, places: Sequence[int], extent: int) -> ir.Value:
    """Element i along `axis` is added to element places[i] of zeros with `extent` along it: Gather back."""
    shape = (*shape_of(value)[:axis], extent, *shape_of(value)[axis + 1 :])
    return ctx.result("GatherGradient", [value, ctx.ints(places), ctx.ints(shape)], {"axis": axis}, shape=shape)


def pad_check(node: ir.Node) -> str | None:
    """The counts are constants; only zeros may be negative."""
    counts = array_of(node.inputs[1]) if len(node.inputs) > 1 else None
    axes = node.inputs[3] if len(node.inputs) > 3 else None
    if counts is None or (axes is not None and array_of(axes) is None):
        return "its pads are not constants"
    if node.attributes.get_string("mode", "constant") not in ("constant", "reflect", "edge", "wrap"):
        return "its mode is unknown"
    if node.attributes.get_string("mode", "constant") != "constant" and (counts < 0).any():
        return "negative pads have a gradient in mode constant alone"
    return None


def pad(ctx: Context, node: ir.Node, dys: Sequence[ir.Value | None]) -> Gradients:
    """Constant: what was padded is cut off. Other modes repeat elements, which get the sum of their copies."""
    x, dy = node.inputs[0], dys[0]
    assert dy is not None
    shape, counts = shape_of(x), array_of(node.inputs[1])
    assert counts is not None
    listed = array_of(node.inputs[3]) if len(node.inputs) > 3 else None
    axes = [int(axis) % len(shape) for axis in (range(len(shape)) if listed is None else listed)]
    begins, ends = [0] * len(shape), [0] * len(shape)
    for place, axis in enumerate(axes):
        begins[axis], ends[axis] = int(counts[place]), int(counts[place + len(axes)])
    mode = node.attributes.get_string("mode", "constant") or "constant"

    def emit() -> ir.Value:
        if mode == "constant":
            if min(*begins, *ends, 0) < 0:
                return pad_zeros(ctx, dy, [-count for count in begins], [-count for count in ends])
            changed = [axis for axis in range(len(shape)) if begins[axis] or ends[axis]]
            if not changed:
                return dy
            bounds = (
                [begins[axis] for axis in changed],
                [begins[axis] + shape[axis] for axis in changed],
                changed,
            )
            return ctx.result("Slice", [dy, *map(ctx.ints, bounds)], shape=shape)
        value = dy
        for axis, extent in enumerate(shape):
            if begins[axis] or ends[axis]:
                sources = np.pad(np.arange(extent), (begins[axis], ends[axis]), mode=mode)  # type: ignore[call-overload]
                value = spread(ctx, value, axis, sources.tolist(), extent)
        return value

    return {0: emit}


def space(ctx: Context, node: ir.Node, dys: Sequence[ir.Value | None]) -> Gradients:
    """DepthToSpace and SpaceToDepth: the same elements in the other order."""
    x, dy = node.inputs[0], dys[0]
    assert dy is not None
    batch, depth, height, width = shape_of(x)
    b = node.attributes.get_int("blocksize", 1) or 1

    def emit() -> ir.Value:
        if node.op_type == "SpaceToDepth":
            split_dy = ctx.reshape(dy, (batch, b, b, depth, height // b, width // b))
            return ctx.reshape(ctx.transpose(split_dy, (0, 3, 4, 1, 5, 2)), (batch, depth, height, width))
        channels = depth // (b * b)
        split_dy = ctx.reshape(dy, (batch, channels, height, b, width, b))
        columns_first = node.attributes.get_string("mode", "DCR") == "CRD"
        order = (0, 1, 3, 5, 2, 4) if columns_first else (0, 3, 5, 1, 2, 4)
        return ctx.reshape(ctx.transpose(split_dy, order), (batch, depth, height, width))

    return {0: emit}


def trilu(ctx: Context, node: ir.Node, dys: Sequence[ir.Value | None]) -> Gradients:
    """The same triangle."""
    dy = dys[0]
    assert dy is not None
    attributes = {"upper": node.attributes.get_int("upper", 1) or 0}
    return {0: lambda: ctx.result("Trilu", [dy, *node.inputs[1:]], attributes, shape=shape_of(dy))}
