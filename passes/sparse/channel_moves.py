"""Which channels a result carries that holds elements of its operands at other places."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt.graph.constness import is_constant
from graphopt.graph.edit import array_of, dims, ints
from graphopt.passes.sparse.carriers import Carrier, Finder, is_static, is_variable

MOST_PLACES = 1 << 20
"""Longer axes, made of channels and what is beside them, are not followed."""


def transpose(finder: Finder, node: ir.Node) -> bool:
    """Axes change places."""
    x, y = node.inputs[0], node.outputs[0]
    if x is None or not is_static(node):
        return False
    perm = ints(node, "perm", list(range(len(dims(x) or ())))[::-1])
    for carrier in finder.of(x):
        finder.carry(y, [perm.index(axis) for axis in carrier.axes], carrier.places)
    return True


def reshape(finder: Finder, node: ir.Node) -> bool:
    """[.., H * D] <-> [.., H, D] carry the same; an axis of channels and of what is beside them repeats each."""
    x, y = node.inputs[0], node.outputs[0]
    if x is None or not is_static(node):
        return False
    finder.refuse(*node.inputs[1:])
    shape, out = dims(x) or (), dims(y) or ()
    blocks = _blocks(shape, out)
    for carrier in finder.of(x):
        moved = None if blocks is None else _reshaped(finder.of(x), carrier, shape, blocks)
        if moved is None:
            finder.fix(carrier.places)
        else:
            finder.carry(y, moved.axes, moved.places)
    return True


Block = tuple[tuple[int, ...], tuple[int, ...]]
"""Axes of x and axes of y, none of one element, that hold the same elements in the same order."""


def _blocks(shape: Sequence[int], out: Sequence[int]) -> list[Block] | None:
    """The finest pairs of neighbouring axes of two shapes; None if an axis has no element."""
    if 0 in shape or 0 in out or math.prod(shape) != math.prod(out):
        return None
    mine, theirs = ([axis for axis, extent in enumerate(each) if extent > 1] for each in (shape, out))
    blocks = []
    while mine or theirs:
        a, b = [mine.pop(0)], [theirs.pop(0)]
        p, q = shape[a[0]], out[b[0]]
        while p != q:
            if p < q:
                a.append(mine.pop(0))
                p *= shape[a[-1]]
            else:
                b.append(theirs.pop(0))
                q *= out[b[-1]]
        blocks.append((tuple(a), tuple(b)))
    return blocks


def _reshaped(
    carriers: Sequence[Carrier], carrier: Carrier, shape: Sequence[int], blocks: Sequence[Block]
) -> Carrier | None:
    """What y carries for a carrier of x; None if its places have no order there that others share."""
    touched = [block for block in blocks if set(block[0]) & set(carrier.axes)]
    # The blocks in the order in which the carrier has them, so that heads stay before what is inside them.
    touched.sort(key=lambda block: min(carrier.axes.index(axis) for axis in block[0] if axis in carrier.axes))
    axes = [axis for block in touched for axis in block[0]]
    order = [axis for axis in axes if axis in carrier.axes]
    extents = [shape[axis] for axis in axes]
    shared = any(each is not carrier and set(each.axes) & set(axes) for each in carriers)
    if shared or math.prod(extents) > MOST_PLACES:
        return None
    grid = carrier.along(order, shape).reshape([shape[axis] if axis in order else 1 for axis in axes])
    places = np.broadcast_to(grid, extents).reshape(-1)
    return Carrier(tuple(axis for block in touched for axis in block[1]), places)


def concat(finder: Finder, node: ir.Node) -> bool:
    """The axis carries the channels of the operands side by side; other axes are those of all operands."""
    y = node.outputs[0]
    if not is_static(node) or any(value is None for value in node.inputs):
        return False
    rank = len(dims(y) or ())
    axis = (node.attributes.get_int("axis", 0) or 0) % rank
    values = [value for value in node.inputs if value is not None]
    along = [each for value in values if (each := finder.on(value, axis)) is not None]
    if along and not _beside(finder, node, values, axis, along[0].axes):
        for carrier in along:
            finder.fix(carrier.places)
    for value in values:
        for carrier in finder.of(value):
            if axis not in carrier.axes:
                finder.join(y, carrier.axes, carrier.places)
    for carrier in finder.of(y):
        if axis in carrier.axes:
            continue
        for index, value in enumerate(values):
            there = finder.on(value, carrier.axes[0])
            if is_constant(value):
                finder.operand(node, index, carrier.axes, carrier)
            elif there is None or set(there.axes) != set(carrier.axes):
                finder.fix(carrier.places)
    return True


def _beside(finder: Finder, node: ir.Node, values: Sequence[ir.Value], axis: int, axes: tuple[int, ...]) -> bool:
    """Let y carry what all operands carry, side by side along `axis`; False if their axes differ."""
    y = node.outputs[0]
    grids = []
    for value in values:
        shape = dims(value) or ()
        carrier = finder.on(value, axis)
        others = {each for each in axes if each != axis and finder.on(value, each) is not carrier}
        if carrier is None and not others:  # in an order of its own, which stays
            carrier = Carrier(axes, finder.new(math.prod(shape[each] for each in axes)))
            finder.fix(carrier.places)
        if carrier is None or others or set(carrier.axes) - {axis} != set(axes) - {axis}:
            return False
        # an axis of one element is in no carrier
        order = [each for each in axes if each in carrier.axes]
        grids.append(carrier.along(order, shape).reshape([shape[each] for each in axes]))
    finder.carry(y, axes, np.concatenate(grids, axis=axes.index(axis)).reshape(-1))
    return True


def split(finder: Finder, node: ir.Node) -> bool:
    """Each result carries its part."""
    x = node.inputs[0]
    if x is None or not is_static(node):
        return False
    axis = (node.attributes.get_int("axis", 0) or 0) % len(dims(x) or ())
    start = 0
    for y in node.outputs:
        extent = (dims(y) or ())[axis]
        _take(finder, x, y, {axis: np.arange(start, start + extent)})
        start += extent
    return True


def slices(finder: Finder, node: ir.Node) -> bool:
    """The result carries what constant bounds cut out."""
    x, y = node.inputs[0], node.outputs[0]
    if x is None or not is_static(node):
        return False
    shape = dims(x) or ()
    bounds = [array_of(value) for value in node.inputs[1:]]
    if len(bounds) < 2 or any(bound is None for bound, value in zip(bounds, node.inputs[1:], strict=True) if value):
        return False
    starts, ends = (bound.reshape(-1).tolist() for bound in bounds[:2] if bound is not None)
    axes = bounds[2].reshape(-1).tolist() if len(bounds) > 2 and bounds[2] is not None else list(range(len(starts)))
    steps = bounds[3].reshape(-1).tolist() if len(bounds) > 3 and bounds[3] is not None else [1] * len(starts)
    places = {}
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        extent = shape[axis % len(shape)]
        if step == 0:
            return False
        if step < 0 and end < -extent:  # all of the elements before `start`
            end = -extent - 1
        places[axis % len(shape)] = np.arange(extent)[slice(start, end if step > 0 or end >= -extent else None, step)]
    _take(finder, x, y, places)
    return True


def gather(finder: Finder, node: ir.Node) -> bool:
    """Rows of a constant table have outputs of their own; constant indices pick channels."""
    x, indices, y = node.inputs[0], node.inputs[1], node.outputs[0]
    if x is None or indices is None or not is_static(node):
        return False
    shape, rank = dims(x) or (), len(dims(indices) or ())
    axis = (node.attributes.get_int("axis", 0) or 0) % len(shape)
    place = {each: each if each < axis else each + rank - 1 for each in range(len(shape)) if each != axis}
    if is_constant(x) and is_variable(indices):
        finder.refuse(indices)
        for each, at in place.items():
            finder.operand(node, 0, [each], finder.carry(y, [at]))
        return True
    picked = array_of(indices)
    if is_constant(x) or picked is None:
        return False
    if rank == 1:
        _take(finder, x, y, {axis: picked % shape[axis]})
        return True
    for carrier in finder.of(x):
        if axis not in carrier.axes:
            finder.carry(y, [place[each] for each in carrier.axes], carrier.places)
        elif rank == 0 and len(carrier.axes) > 1:
            grid = carrier.places.reshape([shape[each] for each in carrier.axes])
            rest = [place[each] for each in carrier.axes if each != axis]
            finder.carry(y, rest, grid.take(int(picked) % shape[axis], axis=carrier.axes.index(axis)).reshape(-1))
        else:
            finder.fix(carrier.places)
    return True


def _take(finder: Finder, x: ir.Value, y: ir.Value, places: dict[int, NDArray[np.int64]]) -> None:
    """y carries what x carries at some `places` of some axes, none of which goes away."""
    shape = dims(x) or ()
    for carrier in finder.of(x):
        grid = carrier.places.reshape([shape[axis] for axis in carrier.axes])
        for number, axis in enumerate(carrier.axes):
            if axis in places:
                grid = grid.take(places[axis], axis=number)
        if grid.size:
            finder.carry(y, carrier.axes, grid.reshape(-1))


def stretch(finder: Finder, node: ir.Node) -> bool:
    """Resize, Pad and Expand keep the axes whose extent they keep."""
    x, y = node.inputs[0], node.outputs[0]
    if (
        x is None
        or not is_static(node)
        or node.attributes.get_string("coordinate_transformation_mode", "") == ("tf_crop_and_resize")
    ):
        return False
    finder.refuse(*node.inputs[1:])
    shape, out = dims(x) or (), dims(y) or ()
    kept = {axis for axis, extent in enumerate(shape) if extent == out[axis + len(out) - len(shape)]}
    if node.op_type == "Pad":
        pads = array_of(node.inputs[1]) if len(node.inputs) == 2 or node.inputs[2] is not None else None
        if pads is None or len(pads) != 2 * len(shape) or (len(node.inputs) > 3 and node.inputs[3] is not None):
            return False
        kept = {axis for axis in kept if not pads[axis] and not pads[axis + len(shape)]}
    for carrier in finder.of(x):
        if set(carrier.axes) <= kept:
            finder.carry(y, [axis + len(out) - len(shape) for axis in carrier.axes], carrier.places)
        else:
            finder.fix(carrier.places)
    return True
