"""Gradients of arithmetic, of one or several tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import onnx_ir as ir

from graphopt.passes.training.gradients.context import Context, Gradients, Rule, Thunk

Slope = Callable[[Context, ir.Value, ir.Value, ir.Value], ir.Value]
"""(context, dy, x, y) -> dx."""

_SLOPES: dict[str, Slope] = {
    "Abs": lambda c, dy, x, y: c.op("Mul", dy, c.op("Sign", x)),
    "Acos": lambda c, dy, x, y: c.op("Neg", c.op("Div", dy, _root(c, x, -1.0, 1.0))),
    "Acosh": lambda c, dy, x, y: c.op("Div", dy, _root(c, x, 1.0, -1.0)),
    "Asin": lambda c, dy, x, y: c.op("Div", dy, _root(c, x, -1.0, 1.0)),
    "Asinh": lambda c, dy, x, y: c.op("Div", dy, _root(c, x, 1.0, 1.0)),
    "Atan": lambda c, dy, x, y: c.op("Div", dy, c.op("Add", c.op("Mul", x, x), 1.0)),
    "Atanh": lambda c, dy, x, y: c.op("Div", dy, c.op("Sub", 1.0, c.op("Mul", x, x))),
    "Cos": lambda c, dy, x, y: c.op("Neg", c.op("Mul", dy, c.op("Sin", x))),
    "Cosh": lambda c, dy, x, y: c.op("Mul", dy, c.op("Sinh", x)),
    "Erf": lambda c, dy, x, y: c.op(
        "Mul", dy, c.op("Mul", c.op("Exp", c.op("Neg", c.op("Mul", x, x))), 2 / math.sqrt(math.pi))
    ),
    "Exp": lambda c, dy, x, y: c.op("Mul", dy, y),
    "Identity": lambda c, dy, x, y: dy,
    "Log": lambda c, dy, x, y: c.op("Div", dy, x),
    "Neg": lambda c, dy, x, y: c.op("Neg", dy),
    "Reciprocal": lambda c, dy, x, y: c.op("Neg", c.op("Mul", dy, c.op("Mul", y, y))),
    "Sin": lambda c, dy, x, y: c.op("Mul", dy, c.op("Cos", x)),
    "Sinh": lambda c, dy, x, y: c.op("Mul", dy, c.op("Cosh", x)),
    "Sqrt": lambda c, dy, x, y: c.op("Div", c.op("Mul", dy, 0.5), y),
    "Tan": lambda c, dy, x, y: c.op("Mul", dy, c.op("Add", c.op("Mul", y, y), 1.0)),
}


def _root(ctx: Context, x: ir.Value, factor: float, shift: float) -> ir.Value:
    """sqrt(factor x^2 + shift)."""
    square = ctx.op("Mul", x, x)
    return ctx.op("Sqrt", ctx.op("Add", square if factor > 0 else ctx.op("Neg", square), shift))


def unary(ctx: Context, node: ir.Node, dys: Sequence[ir.Value | None]) -> Gradients:
    """Functions of one tensor."""
    x, dy = node.inputs[0], dys[0]
    assert x is not None
    assert dy is not None
    return {0: lambda: _SLOPES[node.op_type](ctx, dy, x, node.outputs[0])}


Parts = Callable[[Context, ir.Value, ir.Value, ir.Value, ir.Value], tuple[Thunk, Thunk]]
"""(context, dy, a, b, y) -> what emits the gradients of a and b, before they are summed over broadcast axes."""


def _binary(parts: Parts) -> Rule:
    def rule(ctx: Context, node: ir.Node, dys: Sequence[ir.Value | None]) -> Gradients:
        (a, b), dy = node.inputs, dys[0]
        assert a is not None
        assert b is not None
        assert dy is not None
        thunks = parts(ctx, dy, a, b, node.outputs[0])

        def summed(place: int, value: ir.Value) -> Thunk:
            def emit() -> ir.Value | None:
                gradient = thunks[place]()
                return None if gradient is None else ctx.unbroadcast(gradient, value)

            return emit

        return {0: summed(0, a), 1: summed(1, b)}

    return rule


def _power(ctx: Context, dy: ir.Value, a: ir.Value, b: ir.Value, y: ir.Value) -> tuple[Thunk, Thunk]:
    """b a^(b-1), 0 where b is 0; y log(a), 0 where a is 0 and b is not negative."""

    def base() -> ir.Value:
        exponent = ctx.cast(b, a.dtype)
        slope = ctx.op("Mul", exponent, ctx.op("Pow", a, ctx.op("Sub", exponent, 1.0)))
        return ctx.where(ctx.op("Equal", exponent, 0.0), 0.0, ctx.op("Mul", dy, slope))

    def exponent() -> ir.Value:
        flat = ctx.op("And", ctx.op("Equal", a, 0.0), ctx.op("GreaterOrEqual", b, 0.0))
        return ctx.where(flat, 0.0, ctx.op("Mul", dy, ctx.op("Mul", y, ctx.op("Log", a))))

    return base, exponent


ADD = _binary(lambda c, dy, a, b, y: (lambda: dy, lambda: dy))
SUB = _binary(lambda c, dy, a, b, y: (lambda: dy, lambda: c.op("Neg", dy)))
MUL = _binary(lambda c, dy, a, b, y: (lambda: c.op("Mul", dy, b), lambda: c.op("Mul", dy, a)))
DIV = _binary(
    lambda c, dy, a, b, y: (lambda: c.op("Div", dy, b), lambda: c.op("Neg", c.op("Mul", dy, c.op("Div", y, b))))
)
POW = _binary(_power)


def _operands(node: ir.Node) -> list[ir.Value]:
    return [value for value in node.inputs if value is not None]


def total(ctx: Context, node: ir.Node, dys: Sequence[ir.Value | None]) -> Gradients:
    """Sum and Mean of any number of tensors."""
    dy = dys[0]
    assert dy is not None
    values = _operands(node)
    factor = 1.0 / len(values) if node.op_type == "Mean" else 1.0

    def part(value: ir.Value) -> Thunk:
        return lambda: ctx.unbroadcast(dy if factor == 1.0 else ctx.op("Mul", dy, factor), value)

    return {place: part(value) for place, value in enumerate(values)}


def extreme(ctx: Context, node: ir.Node, dys: Sequence[ir.Value | None]) -> Gradients:
    """Max and Min of any number of tensors: those that reach the result share the gradient."""
    dy, y = dys[0], node.outputs[0]
    assert dy is not None
    values = _operands(node)
    shared: list[ir.Value] = []

    def share() -> ir.Value:
        if not shared:
            if len(values) == 1:
                shared.append(dy)
                return dy
            reached = [ctx.cast(ctx.op("Equal", value, y), dy.dtype) for value in values]
            count = reached[0]
            for each in reached[1:]:
                count = ctx.op("Add", count, each)
            shared.append(ctx.op("Div", dy, count))
        return shared[0]

    def part(value: ir.Value) -> Thunk:
        return lambda: ctx.unbroadcast(ctx.where(ctx.op("Equal", value, y), share(), 0.0), value)

    return {place: part(value) for place, value in enumerate(values)}


def clip(ctx: Context, node: ir.Node, dys: Sequence[ir.Value | None]) -> Gradients:
    """Strictly between the bounds, read from the result as PyTorch's ReLU6 does; the bounds get what is beyond them."""
    dy, x, y = dys[0], node.inputs[0], node.outputs[0]
    assert dy is not None
    assert x is not None
    low, high = ([*node.inputs[1:], None, None])[:2]

    def inside() -> ir.Value:
        held = [ctx.op(compare, y, bound) for compare, bound in (("Greater", low), ("Less", high)) if bound is not None]
        if not held:
            return dy
        return ctx.where(held[0] if len(held) == 1 else ctx.op("And", *held), dy, 0.0)

    gradients: dict[int, Thunk] = {0: inside}
    if low is not None:
        gradients[1] = lambda: ctx.unbroadcast(ctx.where(ctx.op("Less", x, low), dy, 0.0), low)
    if high is not None:
        gradients[2] = lambda: ctx.unbroadcast(ctx.where(ctx.op("Greater", x, high), dy, 0.0), high)
    return gradients


def where(ctx: Context, node: ir.Node, dys: Sequence[ir.Value | None]) -> Gradients:
    """Each branch gets the gradient where it was chosen."""
    (condition, a, b), dy = node.inputs, dys[0]
    assert condition is not None
    assert a is not None
    assert b is not None
    assert dy is not None
    return {
        1: lambda: ctx.unbroadcast(ctx.where(condition, dy, 0.0), a),
        2: lambda: ctx.unbroadcast(ctx.where(condition, 0.0, dy), b),
    }


def cast(ctx: Context, node: ir.Node, dys: Sequence[ir.Value | None]) -> Gradients:
    """The gradient has the dtype of the operand."""
    x, dy = node.inputs[0], dys[0]
    assert x is not None
    assert dy is not None
    return {0: lambda: ctx.cast(dy, x.dtype)}
