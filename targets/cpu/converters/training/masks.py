"""DropoutMask, PositiveBits, MaskByBits, and GatherGradient."""

from __future__ import annotations

import math

import numpy as np

from graphopt.targets.common.converters.base import OPAQUE, Context, Inputs, Outputs, dtype_of, shape_of
from graphopt.targets.common.kernels.blocks import SCHEDULED
from graphopt.targets.cpu.kernels.training import masks, scatter


def dropout_mask(c: Context, inputs: Inputs) -> Outputs:
    """DropoutMask: the keys of the step, then a hash for each element."""
    size = math.prod(c.out_shape)
    if size == 0 or dtype_of(inputs[0]) != "int64":
        return NotImplemented
    seed = c.integer("seed")
    limit = int(float(np.float32(c.real("ratio"))) * 2.0**32)
    keys = c.te("dropout_keys", lambda v: masks.keys(v, seed), c.reshape(inputs[0], (1,)), pattern=OPAQUE)
    mask = c.te("dropout_mask", lambda k: masks.dropout(k, size, limit), keys, pattern=OPAQUE)
    return c.reshape(mask, c.out_shape)


def positive_bits(c: Context, inputs: Inputs) -> Outputs:
    """PositiveBits."""
    size = math.prod(shape_of(inputs[0]))
    if size == 0 or dtype_of(inputs[0]) not in ("float32", "float64"):
        return NotImplemented
    return c.te("positive_bits", masks.positive, c.reshape(inputs[0], (size,)), pattern=OPAQUE)


def mask_by_bits(c: Context, inputs: Inputs) -> Outputs:
    """MaskByBits."""
    dy, bits = inputs
    size = math.prod(shape_of(dy))
    if size == 0 or dtype_of(dy) not in ("float32", "float64"):
        return NotImplemented
    return c.reshape(c.te("mask_by_bits", masks.masked, c.reshape(dy, (size,)), bits, pattern=OPAQUE), shape_of(dy))


def gather_gradient(c: Context, inputs: Inputs) -> Outputs:
    """GatherGradient: rows added in the order of the indices, by tasks that own columns."""
    dy, indices = inputs[:2]
    shape = c.out_shape
    axis, count = c.integer("axis") % max(len(shape), 1), math.prod(shape_of(indices))
    outer, inner = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    if dtype_of(dy) not in ("float32", "float64") or 0 in shape or count == 0:
        return NotImplemented
    operands = c.reshape(dy, (outer, count, inner)), c.reshape(indices, (count,))
    sums = c.definitions.emit(
        c.builder,
        "gather_gradient",
        lambda g, k: scatter.rows(g, k, shape[axis]),
        operands,
        {"op_pattern": OPAQUE, SCHEDULED: 1},
    )
    return c.reshape(sums, shape)
