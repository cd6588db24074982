"""Pools of the training step on blocked tensors: the schedule of windows computes whole tiles of columns."""

from __future__ import annotations

from tvm import relax

from graphopt.targets.common.converters.base import OPAQUE, Context, Inputs, Outputs
from graphopt.targets.common.converters.training import pools
from graphopt.targets.common.kernels.blocks import RULE, round_up
from graphopt.targets.common.kernels.training.pools import Tiles, Window
from graphopt.targets.cpu.converters.blocked import two
from graphopt.targets.cpu.kernels.conv import depthwise

_TILES = Tiles(lambda columns: round_up(columns, depthwise.tile_columns(columns)), {RULE: depthwise.NAME})


def _largest(c: Context, x: relax.Expr, window: Window) -> relax.Expr:
    pads = window.begins[0], window.begins[1], 0, 0
    arguments = two(window.kernel), two(window.strides), pads, two(window.dilations), two(window.out), False
    return c.te("pool_max", lambda v: depthwise.pool(v, "max", *arguments), x, pattern=OPAQUE)


def max_pool_argmax_blocked(c: Context, inputs: Inputs) -> Outputs:
    """MaxPoolArgmaxBlocked."""
    return pools.max_pool_argmax(c, inputs, _largest, _TILES)


def max_pool_gradient_blocked(c: Context, inputs: Inputs) -> Outputs:
    """MaxPoolGradientBlocked."""
    return pools.max_pool_gradient(c, inputs, _TILES)


def average_pool_gradient_blocked(c: Context, inputs: Inputs) -> Outputs:
    """AveragePoolGradientBlocked."""
    return pools.average_pool_gradient(c, inputs, _TILES)
