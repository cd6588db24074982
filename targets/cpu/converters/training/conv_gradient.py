"""Weight gradients of convolutions on blocked tensors."""

from __future__ import annotations

from tvm import relax

from graphopt.targets.common.converters.base import OPAQUE, Context, Inputs, Outputs, shape_of
from graphopt.targets.cpu.converters.blocked import pad, two
from graphopt.targets.cpu.kernels.training import weight_gradient


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


def _added(c: Context, sums: relax.Expr) -> relax.Expr:
    """The sum of all shares; a view where there is one."""
    shares, *shape = shape_of(sums)
    if shares == 1:
        return c.reshape(sums, tuple(shape))
    return c.te("add_shares", weight_gradient.added, sums, pattern=OPAQUE)
