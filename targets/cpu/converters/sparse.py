"""Products with block-sparse weights."""

from __future__ import annotations

import math

import numpy as np
from tvm import relax, te

from graphopt.graph.constness import constant_array, is_constant
from graphopt.program.program import ITEM_BYTES
from graphopt.targets.common.converters.base import EPILOGUE, Context, Inputs, Outputs, dtype_of, shape_of
from graphopt.targets.common.kernels.blocks import round_up
from graphopt.targets.common.kernels.groups import longest
from graphopt.targets.cpu.converters.blocked import pad, two
from graphopt.targets.cpu.kernels.sparse import columns, conv, definition, outputs, panels
from graphopt.targets.cpu.kernels.sparse import rows as by_rows


def block_sparse_matmul(c: Context, inputs: Inputs) -> Outputs:
    """BlockSparseMatMul of float32 or float64 with a constant pattern, by vectors of outputs or of rows."""
    x, blocks, _, starts = inputs
    dtype, shape = dtype_of(x), shape_of(x)
    count, _, width = shape_of(blocks)
    pattern = c.node.inputs[2]
    lanes = c.machine.lanes(dtype)
    if dtype not in ("float32", "float64") or 0 in shape or not is_constant(pattern):
        return NotImplemented
    if count == 0:
        return c.builder.emit(relax.op.zeros(c.out_shape, dtype))
    m, k, n = math.prod(shape[:-1]), shape[-1], c.out_shape[-1]
    by_outputs = width % lanes == 0 or lanes % width == 0 and m <= math.ceil(m / lanes) * width
    if not by_outputs and lanes % width:
        return NotImplemented
    line = 1 if by_outputs else lanes // width
    groups = round_up(math.ceil(n / width), line)
    if by_outputs:
        rule, height = outputs.NAME, outputs.tile_rows(m, lanes)
    else:
        rule, height = by_rows.NAME, by_rows.tile_vectors(m, width, c.machine, dtype) * lanes
    extents = (1, k, 1) if m == 1 else panels.shape(m, k, height, lanes)
    packed = c.reshape(x, (m, k))
    if m == 1:
        packed = c.reshape(packed, extents)
    else:
        packed = c.function("to_panels", panels.to_panels(m, k, height, lanes, dtype), extents, packed)
    order = definition.order(np.asarray(constant_array(pattern)), groups, extents[0], c.machine.cores, line)
    most = longest(order, groups)

    def define(panel: te.Tensor, weights: te.Tensor, places: te.Tensor, bounds: te.Tensor) -> te.Tensor:
        return definition.compute(rule, panel, weights, places, bounds, c.out_shape, height, most, groups)

    return c.te("sparse_product", define, packed, blocks, starts, relax.const(order, "int32"), pattern=EPILOGUE)


def block_sparse_conv(c: Context, inputs: Inputs) -> Outputs:
    """BlockSparseConv of float32 with a constant pattern of vectors of outputs."""
    x, blocks, _, _, bias = inputs
    count, depth, width = shape_of(blocks)
    rows, starts = c.node.inputs[2:4]
    if dtype_of(x) != "float32" or depth != 1 or 0 in shape_of(x) or not (is_constant(rows) and is_constant(starts)):
        return NotImplemented
    groups = c.out_shape[1]
    if count == 0:
        return c.broadcast(c.reshape(bias, (1, groups, 1, 1, width)), c.out_shape)
    padded = pad(c, x, c.integers("pads"))
    n, _, height, image_width, block = shape_of(padded)
    kernel, strides, dilations = (two(c.integers(name)) for name in ("kernel_shape", "strides", "dilations"))
    window = conv.Window(kernel, strides, dilations, (height, image_width), block)
    tile = conv.tile_of(two(c.out_shape[2:4]), window.flat, c.machine)
    tiles = conv.tiles(two(c.out_shape[2:4]), window.flat, tile) * n
    least = definition.ranges(count * width * ITEM_BYTES["float32"], c.machine)
    order = definition.order(np.asarray(constant_array(rows)), groups, tiles, c.machine.cores, 1, least)
    most = longest(order, groups)

    def define(image: te.Tensor, weights: te.Tensor, places: te.Tensor, bounds: te.Tensor, b: te.Tensor) -> te.Tensor:
        return conv.compute(image, weights, places, bounds, b, c.out_shape, window, tile, most)

    flat = c.reshape(padded, (n, math.prod(shape_of(padded)[1:])))
    offsets = relax.const(window.offsets(np.asarray(constant_array(starts))), "int32")
    return c.te("sparse_conv", define, flat, blocks, offsets, relax.const(order, "int32"), bias, pattern=EPILOGUE)


def compressed_columns_matmul(c: Context, inputs: Inputs) -> Outputs:
    """CompressedColumnsMatMul of few rows with constant columns, which are cut to the outputs of a task."""
    x, *_, book = inputs
    dtype, shape = dtype_of(x), shape_of(x)
    m, k, n = math.prod(shape[:-1]), shape[-1], c.out_shape[-1]
    packed = [np.asarray(constant_array(value)) for value in c.node.inputs[1:4] if is_constant(value)]
    if dtype not in ("float32", "float64") or 0 in (m, k, n) or m > columns.MOST_ROWS or len(packed) < 3:
        return NotImplemented
    codes, zeros, pointers = packed
    entries = columns.places(codes, zeros, pointers)
    if not len(entries[0]):
        return c.builder.emit(relax.op.zeros(c.out_shape, dtype))
    made = columns.cut(*entries, k, n, c.machine.cores)
    operands = [relax.const(array, str(array.dtype)) for array in (made.codes, made.zeros, made.pointers, made.firsts)]
    function = columns.product(m, k, n, made, shape_of(book)[0], dtype)
    y = c.function("compressed_columns", function, (m, n), c.reshape(x, (m, k)), *operands, book)
    return c.reshape(y, c.out_shape)
