"""Weight gradients of convolutions, on blocked tensors and on planar ones."""

from __future__ import annotations

import math

from tvm import relax

from graphopt.targets.common.converters.base import OPAQUE, Context, Inputs, Outputs, dtype_of, shape_of
from graphopt.targets.cpu.converters.blocked import pad, two
from graphopt.targets.cpu.kernels import gemm
from graphopt.targets.cpu.kernels.training import patches, weight_gradient


def conv2d_weight_gradient_blocked(c: Context, inputs: Inputs) -> Outputs:
    """Conv2dWeightGradientBlocked: sums of parts of the positions; one more kernel where images share few tasks."""
    x, dy = inputs
    kernel, group = two(c.integers("kernel_shape")), c.integer("group", 1)
    strides, dilations = two(c.integers("strides", (1, 1))), two(c.integers("dilations", (1, 1)))
    sums = c.te(
        "conv_weight_gradient",
        lambda p, q: weight_gradient.compute(p, q, kernel, strides, dilations, group, c.machine),
        pad(c, x, c.integers("pads", (0, 0, 0, 0))),
        dy,
        pattern=OPAQUE,
    )
    return _added(c, sums)


def depthwise_weight_gradient_blocked(c: Context, inputs: Inputs) -> Outputs:
    """DepthwiseWeightGradientBlocked, likewise."""
    x, dy = inputs
    kernel = two(c.integers("kernel_shape"))
    strides, dilations = two(c.integers("strides", (1, 1))), two(c.integers("dilations", (1, 1)))
    sums = c.te(
        "depthwise_weight_gradient",
        lambda p, q: weight_gradient.depthwise(p, q, kernel, strides, dilations),
        pad(c, x, c.integers("pads", (0, 0, 0, 0))),
        dy,
        pattern=OPAQUE,
    )
    return _added(c, sums)


def conv_weight_gradient(c: Context, inputs: Inputs) -> Outputs:
    """ConvWeightGradient of any rank and grouping on planar tensors: for each image and group a GEMM of dY and patches.

    dw[g, o, j] = sum over n of sum over p of dy[n, g, o, p] * patches[n, g, p, j]     j = (channel, tap)
    """
    x, dy = inputs
    if dtype_of(x) not in ("float32", "float64") or 0 in (*shape_of(x), *shape_of(dy)):
        return NotImplemented
    groups, kernel = c.integer("group", 1), c.integers("kernel_shape")
    batch, channels, *image = shape_of(x)
    outputs, out = c.out_shape[0] // groups, shape_of(dy)[2:]
    rank, depth, positions = len(kernel), channels // groups * math.prod(kernel), math.prod(out)
    strides, dilations = c.integers("strides", (1,) * rank), c.integers("dilations", (1,) * rank)
    begins = c.integers("pads", (0,) * 2 * rank)[:rank]
    tile = gemm.choose_tile(outputs, depth, positions, c.machine, dtype_of(x))
    left = c.reshape(dy, (batch * groups, outputs, positions))
    panels = c.te(
        "patches",
        lambda v: patches.rows(v, groups, kernel, strides, begins, dilations, out, tile.width),
        x,
        pattern=OPAQUE,
    )
    shape = (batch * groups, outputs, depth)
    sums = c.te("gemm", lambda p, q: gemm.compute(p, q, shape, (1, 1, 1), tile.rows), left, panels, pattern=OPAQUE)
    return _added(c, c.reshape(sums, (batch, *c.out_shape)))


def _added(c: Context, sums: relax.Expr) -> relax.Expr:
    """The sum of all shares; a view where there is one."""
    shares, *shape = shape_of(sums)
    if shares == 1:
        return c.reshape(sums, tuple(shape))
    return c.te("add_shares", weight_gradient.added, sums, pattern=OPAQUE)
