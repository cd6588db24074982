"""The patches of a convolution as the right side of the product that gives its weights' gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tvm import te, tirx
from tvm.ir import Expr

from graphopt.targets.common.kernels.blocks import const, dims


def rows(
    x: te.Tensor,
    groups: int,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    out: Sequence[int],
    width: int,
) -> te.Tensor:
    """Panels [N * groups, ceil(J / width), P, width] of x[N, C, *image] with a row for each position.

    J = C / groups * K are channels and taps, P the positions of `out`; padding, and columns after the last, are zero.
    """
    batch, channels, *image = dims(x)
    taps, depth = math.prod(kernel), channels // groups
    columns, positions = depth * taps, math.prod(out)

    def element(b: Expr, panel: Expr, p: Expr, lane: Expr) -> Expr:
        j = panel * width + lane
        tap, place = tirx.floormod(j, taps), p
        at: list[Expr] = []
        inside: list[Expr] = [j < columns] if columns % width else []
        for axis in range(len(kernel) - 1, -1, -1):
            t, q = tirx.floormod(tap, kernel[axis]), tirx.floormod(place, out[axis])
            tap, place = tirx.floordiv(tap, kernel[axis]), tirx.floordiv(place, out[axis])
            index = q * strides[axis] + t * dilations[axis] - pads[axis]
            low = -pads[axis] < 0
            high = (out[axis] - 1) * strides[axis] + (kernel[axis] - 1) * dilations[axis] - pads[axis] >= image[axis]
            inside += [index >= 0] if low else []
            inside += [index < image[axis]] if high else []
            at.insert(0, index)
        channel = tirx.floormod(b, groups) * depth + tirx.floordiv(j, taps)
        value = x[(tirx.floordiv(b, groups), channel, *at)]
        return tirx.if_then_else(tirx.all(*inside), value, const(0, x.dtype)) if inside else value

    shape = (batch * groups, math.ceil(columns / width), positions, width)
    return te.compute(shape, element, name="patches")
