"""Weights of convolutions that a run packs: to and from the blocked layout, flipped, transformed."""

from __future__ import annotations

from tvm import te, tirx
from tvm.ir import Expr

from graphopt.targets.common.converters.base import INJECTIVE, OPAQUE, Context, Inputs, Outputs, dtype_of, shape_of
from graphopt.targets.common.kernels.blocks import const
from graphopt.targets.cpu.kernels.training import weights


def to_blocked_weight(c: Context, inputs: Inputs) -> Outputs:
    """ToBlockedWeight by squares where blocks are full, else element by element."""
    inner, lanes = c.integer("in_block"), c.integer("block")
    outputs, channels, _, _ = shape_of(inputs[0])
    if weights.possible(channels, inner, lanes, dtype_of(inputs[0])):
        kernel = weights.move(shape_of(inputs[0]), lanes, dtype_of(inputs[0]), True)
        return c.function("to_blocked_weight", kernel, c.out_shape, inputs[0])

    def compute(w: te.Tensor) -> te.Tensor:
        def element(p: Expr, q: Expr, y: Expr, z: Expr, i: Expr, lane: Expr) -> Expr | te.TensorSlice:
            o, j = p * lanes + lane, q * inner + i
            guards = [index < size for index, size, tile in ((o, outputs, lanes), (j, channels, inner)) if size % tile]
            value = w[o, j, y, z]
            return tirx.if_then_else(tirx.all(*guards), value, const(0, w.dtype)) if guards else value

        return te.compute(c.out_shape, element, name="to_blocked_weight")

    return c.te("to_blocked_weight", compute, inputs[0], pattern=INJECTIVE)


def from_blocked_weight(c: Context, inputs: Inputs) -> Outputs:
    """FromBlockedWeight, likewise."""
    *_, inner, lanes = shape_of(inputs[0])
    if weights.possible(c.out_shape[1], inner, lanes, dtype_of(inputs[0])):
        kernel = weights.move(c.out_shape, lanes, dtype_of(inputs[0]), False)
        return c.function("from_blocked_weight", kernel, c.out_shape, inputs[0])

    def compute(w: te.Tensor) -> te.Tensor:
        def element(o: Expr, i: Expr, y: Expr, z: Expr) -> Expr | te.TensorSlice:
            at = tirx.floordiv(o, lanes), tirx.floordiv(i, inner), y, z
            return w[(*at, tirx.floormod(i, inner), tirx.floormod(o, lanes))]

        return te.compute(c.out_shape, element, name="from_blocked_weight")

    return c.te("from_blocked_weight", compute, inputs[0], pattern=INJECTIVE)


def flip_blocked_weight(c: Context, inputs: Inputs) -> Outputs:
    """FlipBlockedWeight, likewise."""
    group = c.integer("group", 1)
    out_blocks, in_blocks, kh, kw, inner, lanes = shape_of(inputs[0])
    if weights.possible(inner, inner, lanes, dtype_of(inputs[0])):
        kernel = weights.flip(shape_of(inputs[0]), group, dtype_of(inputs[0]))
        return c.function("flip_blocked_weight", kernel, c.out_shape, inputs[0])
    each = out_blocks // group

    def compute(w: te.Tensor) -> te.Tensor:
        def element(p: Expr, q: Expr, y: Expr, z: Expr, o: Expr, i: Expr) -> Expr | te.TensorSlice:
            block = tirx.floordiv(p, in_blocks) * each + q
            return w[block, tirx.floormod(p, in_blocks), kh - 1 - y, kw - 1 - z, i, o]

        return te.compute(c.out_shape, element, name="flip_blocked_weight")

    return c.te("flip_blocked_weight", compute, inputs[0], pattern=INJECTIVE)


def winograd_weight(c: Context, inputs: Inputs) -> Outputs:
    """WinogradWeight of packed weights."""
    m = c.integer("m")
    return c.te("winograd_weight", lambda w: weights.winograd(w, m), inputs[0], pattern=OPAQUE)


def to_depthwise_weight(c: Context, inputs: Inputs) -> Outputs:
    """ToDepthwiseWeight, element by element."""
    channels, lanes = shape_of(inputs[0])[0], c.integer("block")

    def compute(w: te.Tensor) -> te.Tensor:
        def element(p: Expr, y: Expr, z: Expr, lane: Expr) -> Expr | te.TensorSlice:
            o = p * lanes + lane
            value = w[o, 0, y, z]
            return value if channels % lanes == 0 else tirx.if_then_else(o < channels, value, const(0, w.dtype))

        return te.compute(c.out_shape, element, name="to_depthwise_weight")

    return c.te("to_depthwise_weight", compute, inputs[0], pattern=INJECTIVE)


def from_depthwise_weight(c: Context, inputs: Inputs) -> Outputs:
    """FromDepthwiseWeight, element by element."""

    def compute(w: te.Tensor) -> te.Tensor:
        lanes = int(w.shape[3])

        def element(o: Expr, _: Expr, y: Expr, z: Expr) -> Expr | te.TensorSlice:
            return w[tirx.floordiv(o, lanes), y, z, tirx.floormod(o, lanes)]

        return te.compute(c.out_shape, element, name="from_depthwise_weight")

    return c.te("from_depthwise_weight", compute, inputs[0], pattern=INJECTIVE)
