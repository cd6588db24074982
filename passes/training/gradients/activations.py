"""Gradients of activations, from the result where that is enough."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import onnx_ir as ir

from graphopt.passes.training.gradients.context import Context, Gradients, Rule

Slope = Callable[[Context, ir.Node, ir.Value, ir.Value, ir.Value], ir.Value]
"""(context, node, dy, x, y) -> dx."""


def _unary(slope: Slope) -> Rule:
    """The rule of an operator of one tensor."""

    def rule(ctx: Context, node: ir.Node, dys: Sequence[ir.Value | None]) -> Gradients:
        x, dy = node.inputs[0], dys[0]
        assert x is not None
        assert dy is not None
        return {0: lambda: slope(ctx, node, dy, x, node.outputs[0])}

    return rule


def _alpha(node: ir.Node, default: float) -> float:
    return float(node.attributes.get_float("alpha", default) or 0.0)


def _relu(ctx: Context, node: ir.Node, dy: ir.Value, x: ir.Value, y: ir.Value) -> ir.Value:
    del node, x
    return ctx.where(ctx.op("Greater", y, 0.0), dy, 0.0)


def _leaky_relu(ctx: Context, node: ir.Node, dy: ir.Value, x: ir.Value, y: ir.Value) -> ir.Value:
    alpha = _alpha(node, 0.01)
    signed = y if alpha >= 0 else x  # a positive slope keeps the sign
    return ctx.where(ctx.op("Greater", signed, 0.0), dy, ctx.op("Mul", dy, alpha))


def _thresholded_relu(ctx: Context, node: ir.Node, dy: ir.Value, x: ir.Value, y: ir.Value) -> ir.Value:
    del y
    return ctx.where(ctx.op("Greater", x, _alpha(node, 1.0)), dy, 0.0)


def _elu(ctx: Context, node: ir.Node, dy: ir.Value, x: ir.Value, y: ir.Value) -> ir.Value:
    """x <= 0: alpha exp(x), which is y + alpha."""
    alpha = _alpha(node, 1.0)
    return ctx.where(ctx.op("Greater", x if alpha < 0 else y, 0.0), dy, ctx.op("Mul", dy, ctx.op("Add", y, alpha)))


def _celu(ctx: Context, node: ir.Node, dy: ir.Value, x: ir.Value, y: ir.Value) -> ir.Value:
    """x <= 0: exp(x / alpha), which is y / alpha + 1."""
    alpha = _alpha(node, 1.0)
    slope = ctx.op("Add", ctx.op("Mul", y, 1.0 / alpha), 1.0)
    return ctx.where(ctx.op("Greater", x if alpha < 0 else y, 0.0), dy, ctx.op("Mul", dy, slope))


def _selu(ctx: Context, node: ir.Node, dy: ir.Value, x: ir.Value, y: ir.Value) -> ir.Value:
    """x <= 0: gamma alpha exp(x), which is y + gamma alpha."""
    alpha = _alpha(node, 1.67326319217681884765625)
    gamma = float(node.attributes.get_float("gamma", 1.05070102214813232421875) or 0.0)
    slope = ctx.op("Add", y, gamma * alpha)
    return ctx.where(ctx.op("Greater", x, 0.0), ctx.op("Mul", dy, gamma), ctx.op("Mul", dy, slope))


def _sigmoid(ctx: Context, node: ir.Node, dy: ir.Value, x: ir.Value, y: ir.Value) -> ir.Value:
    del node, x
    return ctx.op("Mul", dy, ctx.op("Mul", y, ctx.op("Sub", 1.0, y)))


def _tanh(ctx: Context, node: ir.Node, dy: ir.Value, x: ir.Value, y: ir.Value) -> ir.Value:
    del node, x
    return ctx.op("Mul", dy, ctx.op("Sub", 1.0, ctx.op("Mul", y, y)))


def _hard_sigmoid(ctx: Context, node: ir.Node, dy: ir.Value, x: ir.Value, y: ir.Value) -> ir.Value:
    del x
    inside = ctx.op("And", ctx.op("Greater", y, 0.0), ctx.op("Less", y, 1.0))
    return ctx.where(inside, ctx.op("Mul", dy, _alpha(node, 0.2)), 0.0)


def _hard_swish(ctx: Context, node: ir.Node, dy: ir.Value, x: ir.Value, y: ir.Value) -> ir.Value:
    """0 below -3, 1 above 3, x / 3 + 1/2 between."""
    del node, y
    between = ctx.op("Mul", dy, ctx.op("Add", ctx.op("Mul", x, 1 / 3), 0.5))
    low = ctx.where(ctx.op("Less", x, -3.0), 0.0, between)
    return ctx.where(ctx.op("Greater", x, 3.0), dy, low)


def _softplus(ctx: Context, node: ir.Node, dy: ir.Value, x: ir.Value, y: ir.Value) -> ir.Value:
    del node, y
    return ctx.op("Mul", dy, ctx.op("Sigmoid", x))


def _softsign(ctx: Context, node: ir.Node, dy: ir.Value, x: ir.Value, y: ir.Value) -> ir.Value:
    del node, y
    divisor = ctx.op("Add", ctx.op("Abs", x), 1.0)
    return ctx.op("Div", dy, ctx.op("Mul", divisor, divisor))


def _mish(ctx: Context, node: ir.Node, dy: ir.Value, x: ir.Value, y: ir.Value) -> ir.Value:
    """y = x t with t = tanh(softplus(x)): t + x (1 - t^2) sigmoid(x)."""
    del node, y
    t = ctx.op("Tanh", ctx.op("Softplus", x))
    slope = ctx.op("Mul", ctx.op("Sub", 1.0, ctx.op("Mul", t, t)), ctx.op("Sigmoid", x))
    return ctx.op("Mul", dy, ctx.op("Add", t, ctx.op("Mul", x, slope)))


def _gelu(ctx: Context, node: ir.Node, dy: ir.Value, x: ir.Value, y: ir.Value) -> ir.Value:
    """x Phi(x): Phi(x) + x phi(x); with approximate = "tanh" the derivative of that formula."""
    del y
    if node.attributes.get_string("approximate", "none") != "tanh":
        phi = ctx.op("Mul", ctx.op("Exp", ctx.op("Mul", ctx.op("Mul", x, x), -0.5)), 1 / math.sqrt(2 * math.pi))
        below = ctx.op("Mul", ctx.op("Add", ctx.op("Erf", ctx.op("Mul", x, math.sqrt(0.5))), 1.0), 0.5)
        return ctx.op("Mul", dy, ctx.op("Add", below, ctx.op("Mul", x, phi)))
    scale, cubic = math.sqrt(2 / math.pi), 0.044715
    square = ctx.op("Mul", x, x)
    inner = ctx.op("Mul", ctx.op("Mul", x, ctx.op("Add", ctx.op("Mul", square, cubic), 1.0)), scale)
    t = ctx.op("Tanh", inner)
    rise = ctx.op("Mul", ctx.op("Add", ctx.op("Mul", square, 3 * cubic), 1.0), scale)
    bend = ctx.op("Mul", ctx.op("Mul", x, ctx.op("Sub", 1.0, ctx.op("Mul", t, t))), rise)
    total = ctx.op("Add", ctx.op("Add", t, 1.0), bend)
    return ctx.op("Mul", dy, ctx.op("Mul", total, 0.5))


def prelu(ctx: Context, node: ir.Node, dys: Sequence[ir.Value | None]) -> Gradients:
    """y = x where x > 0, else slope x."""
    x, slope = node.inputs
    dy = dys[0]
    assert x is not None
    assert slope is not None
    assert dy is not None
    return {
        0: lambda: ctx.where(ctx.op("Greater", x, 0.0), dy, ctx.op("Mul", dy, slope)),
        1: lambda: ctx.unbroadcast(ctx.where(ctx.op("Greater", x, 0.0), 0.0, ctx.op("Mul", dy, x)), slope),
    }


RELU = _unary(_relu)
LEAKY_RELU = _unary(_leaky_relu)
THRESHOLDED_RELU = _unary(_thresholded_relu)
ELU = _unary(_elu)
CELU = _unary(_celu)
SELU = _unary(_selu)
SIGMOID = _unary(_sigmoid)
TANH = _unary(_tanh)
HARD_SIGMOID = _unary(_hard_sigmoid)
HARD_SWISH = _unary(_hard_swish)
SOFTPLUS = _unary(_softplus)
SOFTSIGN = _unary(_softsign)
MISH = _unary(_mish)
GELU = _unary(_gelu)
