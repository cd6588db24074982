"""DropoutMask, PositiveBits and MaskByBits."""

from __future__ import annotations

import math

import numpy as np

from graphopt.targets.common.converters.base import OPAQUE, Context, Inputs, Outputs, dtype_of, shape_of
from graphopt.targets.common.kernels.training import masks


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
