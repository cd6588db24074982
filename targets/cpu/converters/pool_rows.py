"""MaxPool and AveragePool, one row of the output at a time."""

from __future__ import annotations

import math

from tvm import te

from graphopt.targets.common.converters.base import OPAQUE, Context, Inputs, Outputs, dtype_of, shape_of
from graphopt.targets.common.converters.pads import pool_pads
from graphopt.targets.common.converters.pooling import Pool, counts
from graphopt.targets.common.kernels.blocks import SCHEDULED
from graphopt.targets.cpu.kernels import pool_rows

ROWS = ("float32", "int8", "uint8")

LONGEST, LARGEST = 16, 256
"""Largest windows that these kernels take, along the last axis and in all. Longer sums need blocked summation."""


def pool_of_rows(c: Context, inputs: Inputs) -> Outputs:
    """MaxPool without indices and AveragePool of types that vectors hold, with window rows that can be unrolled."""
    (x,) = inputs
    shape, kernel, dtype, average = shape_of(x), c.integers("kernel_shape"), dtype_of(x), c.node.op_type != "MaxPool"
    if dtype not in (("float32",) if average else ROWS) or len(c.node.outputs) > 1 or 0 in (*shape, *c.out_shape):
        return NotImplemented
    if not kernel or kernel[-1] > LONGEST or math.prod(kernel) > LARGEST:
        return NotImplemented
    ones = (1,) * len(kernel)
    strides, dilations = c.integers("strides", ones), c.integers("dilations", ones)
    begins, ends = pool_pads(c, shape[2:], kernel, strides)
    window = Pool(c.out_shape[2:], kernel, strides, dilations, begins)
    arguments = [x]
    if average:
        arguments.append(counts(c, shape[2:], window, ends, dtype))

    def define(v: te.Tensor, cells: te.Tensor | None = None) -> te.Tensor:
        return pool_rows.average(v, cells, window) if average else pool_rows.largest(v, window)

    attributes = {"op_pattern": OPAQUE, SCHEDULED: 1}
    return c.definitions.emit(c.builder, c.node.op_type.lower(), define, tuple(arguments), attributes)
