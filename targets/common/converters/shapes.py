"""Operators that move, split, concatenate or describe tensors, and constants that follow from static shapes."""

from __future__ import annotations

import math

import numpy as np
from tvm import relax

from graphopt.targets.common import concat_views
from graphopt.targets.common.converters.base import Context, Converter, Inputs, Outputs, dtype_of, shape_of
from graphopt.targets.common.converters.index import constant, known


def nothing(c: Context, inputs: Inputs) -> Outputs:
    """Any operator whose outputs have no elements."""
    results = []
    for value in c.node.outputs:
        if value.shape is None or value.dtype is None or 0 not in value.shape.numpy():
            return NotImplemented
        results.append(known(np.zeros(value.shape.numpy(), value.dtype.numpy())))
    return results


def shape(c: Context, inputs: Inputs) -> Outputs:
    """Shape of a static tensor: a constant."""
    dims = shape_of(inputs[0])
    rank = len(dims)
    start = min(max(c.integer("start") + (rank if c.integer("start") < 0 else 0), 0), rank)
    end = c.integer("end", rank)
    end = min(max(end + (rank if end < 0 else 0), 0), rank)
    return known(np.array(dims[start:end], dtype=np.int64))


def size(c: Context, inputs: Inputs) -> Outputs:
    """Size of a static tensor: a constant."""
    return known(np.array(math.prod(shape_of(inputs[0])), dtype=np.int64))


def eye_like(c: Context, inputs: Inputs) -> Outputs:
    """EyeLike: a constant."""
    dtype = c.node.outputs[0].dtype
    if dtype is None:
        return NotImplemented
    rows, columns = shape_of(inputs[0])
    return known(np.eye(rows, columns, c.integer("k")).astype(dtype.numpy()))


def space(to_depth: bool) -> Converter:
    """SpaceToDepth, and DepthToSpace in both modes: a reshape, a transposition, a reshape."""

    def convert(c: Context, inputs: Inputs) -> Outputs:
        (x,) = inputs
        block = c.integer("blocksize")
        n, channels, h, w = shape_of(x)
        if to_depth:
            split: tuple[int, ...] = (n, channels, h // block, block, w // block, block)
            column_row = c.text("mode", "DCR") == "CRD"
            order = [0, 1, 3, 5, 2, 4] if column_row else [0, 3, 5, 1, 2, 4]
        elif c.text("mode", "DCR") == "CRD":
            split, order = (n, channels // block**2, block, block, h, w), [0, 1, 4, 2, 5, 3]
        else:
            split, order = (n, block, block, channels // block**2, h, w), [0, 3, 4, 1, 5, 2]
        moved = c.builder.emit(relax.op.permute_dims(c.reshape(x, split), order))
        return c.reshape(moved, c.out_shape)

    return convert


def concat(c: Context, inputs: Inputs) -> Outputs:
    """Concat without its empty operands, and without a copy where it can be a concatenation view."""
    filled = [x for x in inputs if 0 not in shape_of(x)]
    if len(filled) == 1:
        return filled[0]
    if concat_views.possible([shape_of(x) for x in filled], dtype_of(filled[0]), c.integer("axis") % len(c.out_shape)):
        return concat_views.emit(c.builder, filled, c.out_shape, dtype_of(filled[0]))
    return NotImplemented if len(filled) == len(inputs) else relax.op.concat(filled, c.integer("axis"))


def split(c: Context, inputs: Inputs) -> Outputs:
    """Split; parts may be empty."""
    x = inputs[0]
    axis = c.integer("axis") % len(shape_of(x))
    begin = 0
    parts = []
    for value in c.node.outputs:
        if value.shape is None:
            return NotImplemented
        length = tuple(value.shape.numpy())[axis]
        if math.prod(value.shape.numpy()):
            part = relax.op.strided_slice(x, [axis], [begin], [begin + length])
        else:
            part = known(np.zeros(value.shape.numpy(), np.dtype(dtype_of(x))))
        parts.append(part)
        begin += length
    return parts


def dropout(c: Context, inputs: Inputs) -> Outputs:
    """Dropout in inference: the input, and a mask of ones."""
    training = constant(c, 2) if len(inputs) > 2 and inputs[2] is not None else np.array(False)
    if training is None or training.any():
        return NotImplemented
    results = [inputs[0]]
    if len(c.node.outputs) > 1:
        results.append(known(np.ones(shape_of(inputs[0]), np.bool_)))
    return results
