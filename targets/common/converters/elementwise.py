"""Elementary functions, limits and Gelu, element by element."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import te, tirx
from tvm.ir import Expr

from graphopt.targets.common.converters.base import (
    BROADCAST,
    ELEMENTWISE,
    FLOATS,
    HALF_DTYPES,
    Context,
    Converter,
    Inputs,
    Outputs,
    dtype_of,
    elementwise_map,
)
from graphopt.targets.common.converters.index import constant
from graphopt.targets.common.kernels import math as fast
from graphopt.targets.common.kernels.blocks import const


def elementwise(function: Callable[[Expr], Expr]) -> Converter:
    """A unary float function of one element; fp16 and bf16 are computed in single precision."""

    def convert(c: Context, inputs: Inputs) -> Outputs:
        dtype = dtype_of(inputs[0])
        if dtype not in (*FLOATS, *HALF_DTYPES):
            return NotImplemented
        if dtype in HALF_DTYPES:
            return elementwise_map(c, lambda x: function(x.astype("float32")).astype(dtype), inputs[0])
        return elementwise_map(c, function, inputs[0])

    return convert


def clamp(c: Context, inputs: Inputs) -> Outputs:
    """Relu and Clip of floats: a NaN stays one, where a maximum would lose it."""
    dtype = dtype_of(inputs[0])
    if dtype not in FLOATS:
        return NotImplemented
    if c.node.op_type == "Relu":
        return elementwise_map(c, lambda x: _between(x, const(0.0, dtype), None), inputs[0])
    limits = [_limit(c, index) for index in (1, 2)]
    if any(limit is NotImplemented for limit in limits):
        return _clamp_to_operands(c, inputs)
    low, high = (None if limit is None else const(float(limit), dtype) for limit in limits)
    return elementwise_map(c, lambda x: _between(x, low, high), inputs[0])


def _clamp_to_operands(c: Context, inputs: Inputs) -> Outputs:
    """Clip whose bounds, one element each, are known at run time only; a bound that is NaN has no effect."""
    present = [each is not None for each in (*inputs, None, None)[1:3]]
    bounds = [c.reshape(each, ()) for each in inputs[1:3] if each is not None]

    def define(v: te.Tensor, *given: te.Tensor) -> te.Tensor:
        scalars = iter(given)
        low, high = (next(scalars)() if there else None for there in present)
        return te.compute(v.shape, lambda *index: _between(v(*index), low, high), name="clip")

    return c.te("clip", define, inputs[0], *bounds, pattern=BROADCAST)


def _between(x: Expr, low: Expr | None, high: Expr | None) -> Expr:
    if low is not None:
        x = tirx.Select(x < low, low, x)
    return x if high is None else tirx.Select(x > high, high, x)


def _limit(c: Context, index: int) -> Any:
    """The constant limit of a Clip; None where it has none, NotImplemented where it is known at run time only."""
    if len(c.node.inputs) <= index or c.node.inputs[index] is None:
        return None
    limit = constant(c, index)
    return NotImplemented if limit is None or limit.size != 1 or np.isnan(limit).any() else limit.reshape(())


def _double_gelu(x: Expr) -> Expr:
    """The approximation by tanh as ONNX spells it in operators, whose constants have single precision."""
    half, one, slope, cubic = (
        tirx.const(float(np.float32(number)), "float64") for number in (0.5, 1.0, 2 / math.pi, 0.044715)
    )
    return half * x * (one + tirx.tanh(tirx.sqrt(slope) * (x + cubic * x * x * x)))


def gelu(c: Context, inputs: Inputs) -> Outputs:
    """Gelu by erf, or by its approximation with tanh."""
    if dtype_of(inputs[0]) == "float64" and c.text("approximate", "none") == "tanh":
        return elementwise_map(c, _double_gelu, inputs[0])
    half, one = tirx.const(0.5, "float32"), tirx.const(1.0, "float32")

    def exact(x: Expr) -> Expr:
        return x * half * (one + fast.erf(x * tirx.const(math.sqrt(0.5), "float32")))

    def approximate(x: Expr) -> Expr:
        inner = x * tirx.const(math.sqrt(2 / math.pi), "float32") * (one + tirx.const(0.044715, "float32") * x * x)
        return x * half * (one + fast.tanh(inner))

    return elementwise(approximate if c.text("approximate", "none") == "tanh" else exact)(c, inputs)


def relu_gradient(c: Context, inputs: Inputs) -> Outputs:
    """ReluGradient: the gradient where the activation is positive, else 0; a NaN is not positive."""
    dtype = dtype_of(inputs[0])
    if dtype not in (*FLOATS, *HALF_DTYPES) or dtype_of(inputs[1]) != dtype:
        return NotImplemented
    wide = "float32" if dtype in HALF_DTYPES else dtype

    def define(dy: te.Tensor, y: te.Tensor) -> te.Tensor:
        def value(*index: Expr) -> Expr:
            positive = y(*index).astype(wide) > const(0.0, wide)
            return tirx.Select(positive, dy(*index), const(0.0, dtype))

        return te.compute(dy.shape, value, name="relu_gradient")

    return c.te("relu_gradient", define, *inputs, pattern=ELEMENTWISE)
