"""Products with block-sparse weights."""

from __future__ import annotations

import math

import numpy as np
from tvm import relax, te

from graphopt.graph.constness import constant_array, is_constant
from graphopt.targets.common.converters.base import EPILOGUE, Context, Inputs, Outputs, dtype_of, shape_of
from graphopt.targets.common.kernels.blocks import round_up
from graphopt.targets.cpu.kernels.sparse import definition, outputs, panels, rows


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
        rule, height = rows.NAME, rows.tile_vectors(m, width, c.machine, dtype) * lanes
    extents = (1, k, 1) if m == 1 else panels.shape(m, k, height, lanes)
    packed = c.reshape(x, (m, k))
    if m == 1:
        packed = c.reshape(packed, extents)
    else:
        packed = c.function("to_panels", panels.to_panels(m, k, height, lanes, dtype), packed, extents)
    order = definition.order(np.asarray(constant_array(pattern)), groups, extents[0], c.machine.cores, line)
    longest = int(np.diff(order[: groups + 1]).max())

    def define(panel: te.Tensor, weights: te.Tensor, places: te.Tensor, bounds: te.Tensor) -> te.Tensor:
        return definition.compute(rule, panel, weights, places, bounds, c.out_shape, height, longest, groups)

    return c.te("sparse_product", define, packed, blocks, starts, relax.const(order, "int32"), pattern=EPILOGUE)
