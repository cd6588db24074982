"""Activations and extremes of several tensors, with ONNX Runtime's results for infinities and NaN."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from tvm import tirx
from tvm.ir import Expr

from graphopt.targets.common.converters.base import (
    FLOATS,
    HALF_DTYPES,
    Context,
    Converter,
    Inputs,
    Outputs,
    dtype_of,
    elementwise_map,
    spread,
)
from graphopt.targets.common.kernels import math as fast
from graphopt.targets.common.kernels.blocks import const
from graphopt.targets.common.tir import ieee

Function = Callable[[Context, str], Callable[..., Expr]]
"""From a node and the dtype that it is computed in to the function of one element of each operand."""


def function(define: Function) -> Converter:
    """An operator on floats of one type; fp16 and bf16 are computed in single precision, and rounded once."""

    def convert(c: Context, inputs: Inputs) -> Outputs:
        dtype = dtype_of(inputs[0])
        if dtype not in (*FLOATS, *HALF_DTYPES):
            return NotImplemented
        wide = "float32" if dtype in HALF_DTYPES else dtype
        value = define(c, wide)
        return elementwise_map(
            c, lambda *x: value(*(each.astype(wide) for each in x)).astype(dtype), *spread(c, inputs)
        )

    return convert


def _times(x: Expr, factor: float, dtype: str) -> Expr:
    """`x` times a constant, which makes NaN of infinities if it is 0: TVM would make 0 of them."""
    return x * (const(factor, dtype) if factor else ieee.named(const(factor, dtype)))


def leaky_relu(c: Context, dtype: str) -> Callable[[Expr], Expr]:
    """x above 0, alpha x below."""
    alpha = c.real("alpha", 0.01)
    return lambda x: tirx.Select(x >= const(0, dtype), x, _times(x, alpha, dtype))


def prelu(_: Context, dtype: str) -> Callable[[Expr, Expr], Expr]:
    """x above 0, slope x below."""
    return lambda x, slope: tirx.Select(x >= const(0, dtype), x, x * slope)


def thresholded_relu(c: Context, dtype: str) -> Callable[[Expr], Expr]:
    """x above alpha, 0 below."""
    alpha = const(c.real("alpha", 1.0), dtype)
    return lambda x: tirx.Select(x > alpha, x, const(0, dtype))


def elu(c: Context, dtype: str) -> Callable[[Expr], Expr]:
    """x above 0, alpha (e^x - 1) below; times gamma for Selu, of x / alpha for Celu."""
    kind = c.node.op_type
    alpha = c.real("alpha", 1.67326319217681884765625 if kind == "Selu" else 1.0)
    inner = alpha if kind == "Celu" else 1.0

    def value(x: Expr) -> Expr:
        below = _times(fast.exp(x / const(inner, dtype)) - const(1, dtype), alpha, dtype)
        return tirx.Select(x >= const(0, dtype), x, below)

    if kind != "Selu":
        return value
    gamma = c.real("gamma", 1.05070102214813232421875)
    return lambda x: _times(value(x), gamma, dtype)


def hard_sigmoid(c: Context, dtype: str) -> Callable[[Expr], Expr]:
    """alpha x + beta, clamped to [0, 1]."""
    alpha, beta = c.real("alpha", 0.2), const(c.real("beta", 0.5), dtype)

    def value(x: Expr) -> Expr:
        line = _times(x, alpha, dtype) + beta
        zero, one = const(0, dtype), const(1, dtype)
        return tirx.Select(line < zero, zero, tirx.Select(line > one, one, line))

    return value


def hard_swish(_: Context, dtype: str) -> Callable[[Expr], Expr]:
    """x times HardSigmoid(x), whose slope of one sixth has single precision in every type."""
    slope, half = float(np.float32(1 / 6)), const(0.5, dtype)

    def value(x: Expr) -> Expr:
        line = _times(x, slope, dtype) + half
        zero, one = const(0, dtype), const(1, dtype)
        return x * tirx.Select(line < zero, zero, tirx.Select(line > one, one, line))

    return value


def swish(c: Context, dtype: str) -> Callable[[Expr], Expr]:
    """x Sigmoid(alpha x)."""
    alpha = c.real("alpha", 1.0)
    return lambda x: x * fast.sigmoid(_times(x, alpha, dtype))


def swiglu(c: Context, dtype: str) -> Callable[[Expr, Expr], Expr]:
    """Swish(a) b."""
    gate = swish(c, dtype)
    return lambda a, b: gate(a) * b


def softplus(_: Context, dtype: str) -> Callable[[Expr], Expr]:
    """log(1 + e^x) = max(x, 0) + log1p(e^-|x|), where log1p(u) = log(w) u / (w - 1) of w = 1 + u (Kahan)."""
    one, u = const(1, dtype), tirx.Var("u", dtype)
    w = one + u
    near = tirx.Select(w == one, u, tirx.log(w) * (u / ieee.difference(w, one)))

    def value(x: Expr) -> Expr:
        return tirx.Select(x > const(0, dtype), x, const(0, dtype)) + tirx.Let(u, fast.exp(-tirx.abs(x)), near)

    return value


def sign(c: Context, dtype: str) -> Callable[[Expr], Expr]:
    """-1, 0 or 1; NaN gives 0 in half precision, NaN in other types."""
    zero = const(0, dtype)
    of_nan = zero if c.node.outputs[0].dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16) else None

    def value(x: Expr) -> Expr:
        neither = tirx.Select(fast.is_nan(x), x if of_nan is None else of_nan, zero)
        return tirx.Select(x > zero, const(1, dtype), tirx.Select(x < zero, const(-1, dtype), neither))

    return value


def extreme(largest: bool) -> Converter:
    """Max and Min: NaN if one operand is."""

    def convert(c: Context, inputs: Inputs) -> Outputs:
        dtype = dtype_of(inputs[0])
        floating = dtype in (*FLOATS, *HALF_DTYPES)

        def further(a: Expr, b: Expr) -> Expr:
            if not floating:
                return tirx.max(a, b) if largest else tirx.min(a, b)
            one, other = (x.astype("float32") if dtype == "bfloat16" else x for x in (a, b))
            return tirx.Select(tirx.any(one > other if largest else one < other, fast.is_nan(one)), a, b)

        first, *rest = spread(c, inputs)
        if not rest:
            return elementwise_map(c, lambda x: x, first)
        for each in rest:  # one expression would repeat each operand three times in the next
            first = c.builder.emit(elementwise_map(c, further, first, each))
        return first

    return convert


ACTIVATIONS: dict[str, Converter] = {
    "Celu": function(elu),
    "Elu": function(elu),
    "HardSigmoid": function(hard_sigmoid),
    "HardSwish": function(hard_swish),
    "LeakyRelu": function(leaky_relu),
    "Max": extreme(largest=True),
    "Min": extreme(largest=False),
    "PRelu": function(prelu),
    "Selu": function(elu),
    "Sign": function(sign),
    "Softplus": function(softplus),
    "SwiGLU": function(swiglu),
    "Swish": function(swish),
    "ThresholdedRelu": function(thresholded_relu),
}
