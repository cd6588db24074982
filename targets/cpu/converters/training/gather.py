"""GatherGradient."""

from __future__ import annotations

import math

from graphopt.targets.common.converters.base import OPAQUE, Context, Inputs, Outputs, dtype_of, shape_of
from graphopt.targets.common.kernels.blocks import SCHEDULED
from graphopt.targets.cpu.kernels.training import scatter


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
