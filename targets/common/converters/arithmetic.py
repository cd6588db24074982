"""Elementwise operators that TVM lacks, refuses for some types, or gets wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import relax, tirx
from tvm.ir import Expr, GenericConst

from graphopt.targets.common.converters.base import (
    FLOATS,
    HALF_DTYPES,
    Context,
    Converter,
    Inputs,
    Outputs,
    dtype_of,
    elementwise_map,
    shape_of,
    spread,
)


def is_inf(c: Context, inputs: Inputs) -> Outputs:
    """IsInf with its two flags."""
    (x,) = inputs
    dtype = dtype_of(x)
    if dtype not in FLOATS:
        return NotImplemented
    signs = [sign for sign, name in ((1, "detect_positive"), (-1, "detect_negative")) if c.integer(name, 1)]
    limits = [tirx.const(sign * math.inf, dtype) for sign in signs]

    def matches(value: Expr) -> Any:
        hits = [value == limit for limit in limits]
        return tirx.any(*hits) if hits else tirx.const(False, "bool")

    return elementwise_map(c, matches, x)


_FAR = {"float32": 80.0, "float64": 700.0}
"""Below where e^x overflows."""


def hyperbolic(sign: int) -> Converter:
    """cosh (sign 1) and sinh (sign -1), for which LLVM has no instruction; sinh near 0 by its series.

    Far out, e^x / 2 is (e^(x/2) / 2) e^(x/2): e^x overflows before its half does.
    """

    def convert(c: Context, inputs: Inputs) -> Outputs:
        source = dtype_of(inputs[0])
        dtype = "float32" if source in HALF_DTYPES else source
        if dtype not in FLOATS:
            return NotImplemented
        half, far = tirx.const(0.5, dtype), tirx.const(_FAR[dtype], dtype)

        def value(x: Expr) -> Expr:
            x = x.astype(dtype)
            split = tirx.abs(x) > far
            power = tirx.Select(split, half * x, x)
            up, down = tirx.exp(power), tirx.exp(-power)
            up, down = (half * e * tirx.Select(split, e, tirx.const(1, dtype)) for e in (up, down))
            if sign > 0:
                return (up + down).astype(source)
            square = x * x
            series = x * (
                tirx.const(1, dtype)
                + square * (tirx.const(1 / 6, dtype) + square * (tirx.const(1 / 120, dtype) + square / 5040))
            )
            return tirx.Select(tirx.abs(x) < half, series, up - down).astype(source)

        return elementwise_map(c, value, inputs[0])

    return convert


def mish(c: Context, inputs: Inputs) -> Outputs:
    """x tanh(log(1 + e^x)) = x (w^2 + 2 w) / (w^2 + 2 w + 2) with w = e^x, which cancels nowhere."""
    source = dtype_of(inputs[0])
    dtype = "float32" if source in HALF_DTYPES else source
    if dtype not in ("float32", "float64"):
        return NotImplemented

    def value(x: Expr) -> Expr:
        x = x.astype(dtype)
        w = tirx.exp(tirx.min(x, tirx.const(20, dtype)))
        top = w * (w + tirx.const(2, dtype))
        result = tirx.Select(x > tirx.const(20, dtype), x, x * top / (top + tirx.const(2, dtype)))
        return result.astype(source)

    return elementwise_map(c, value, inputs[0])


def power(c: Context, inputs: Inputs) -> Outputs:
    """Pow whose operands differ in type, or are integers."""
    x, y = inputs
    left, right = dtype_of(x), dtype_of(y)
    if left == right and left in FLOATS:
        return NotImplemented
    x, y = spread(c, [x, y])
    if left in FLOATS or right in FLOATS:
        wide = "float64" if "float64" in (left, right) or "int64" in (left, right) else "float32"
        return elementwise_map(c, lambda a, b: tirx.power(a.astype(wide), b.astype(wide)).astype(left), x, y)
    if left not in ("int32", "int64"):
        return NotImplemented

    def integer(base: Expr, exponent: Expr) -> Expr:
        # Squaring by the six bits that can matter: beyond them every base but 0, 1, -1 has overflowed, and those three
        # depend on the parity only.
        exponent = tirx.Select(exponent > 63, 62 + exponent % 2, exponent)
        result: Expr = tirx.const(1, left)
        square = base
        for bit in range(6):
            odd = tirx.bitwise_and(tirx.shift_right(exponent, tirx.const(bit, right)), tirx.const(1, right)) == 1
            result = tirx.Select(odd, result * square, result)
            square = square * square
        return result

    return elementwise_map(c, integer, x, y)


def divide(c: Context, inputs: Inputs) -> Outputs:
    """Div of integers, towards zero. Where the processor would trap: x / 0 is 0, and the least integer / -1 itself."""
    return _integer(c, inputs, tirx.truncdiv, lambda a: -a)


def _integer(
    c: Context, inputs: Inputs, function: Callable[[Expr, Expr], Expr], by_minus_one: Callable[[Expr], Expr]
) -> Outputs:
    """`function` of integers, with divisors 0 and -1 replaced, for which the processor has no quotient."""
    dtype = dtype_of(inputs[0])
    if not dtype.startswith(("int", "uint")):
        return NotImplemented
    zero, one = tirx.const(0, dtype), tirx.const(1, dtype)
    signed = dtype.startswith("int")

    def value(a: Expr, b: Expr) -> Expr:
        if not signed:
            return tirx.Select(b == zero, zero, function(a, tirx.Select(b == zero, one, b)))
        safe = tirx.Select(tirx.any(b == zero, b == -one), one, b)
        return tirx.Select(b == zero, zero, tirx.Select(b == -one, by_minus_one(a), function(a, safe)))

    return elementwise_map(c, value, *spread(c, inputs))


def modulo(c: Context, inputs: Inputs) -> Outputs:
    """Mod: the sign of the dividend with fmod=1, else of the divisor. Integers modulo zero give 0."""
    dtype = dtype_of(inputs[0])
    if dtype not in FLOATS:
        function = tirx.truncmod if c.integer("fmod") else tirx.floormod
        return _integer(c, inputs, function, lambda a: tirx.const(0, dtype))
    x, y = spread(c, inputs)
    truncated = bool(c.integer("fmod"))
    zero = tirx.const(0, dtype)

    def value(a: Expr, b: Expr) -> Expr:
        wide, name = ("float64", "fmod") if dtype == "float64" else ("float32", "fmodf")  # of the C library
        rest = tirx.call_pure_extern(wide, name, a.astype(wide), b.astype(wide)).astype(dtype)
        if truncated:
            return rest
        unlike = tirx.any(tirx.all(rest < zero, b > zero), tirx.all(rest > zero, b < zero))
        return tirx.Select(unlike, rest + b, rest)

    return elementwise_map(c, value, x, y)


def bit_shift(c: Context, inputs: Inputs) -> Outputs:
    """BitShift of integers; a shift by the width or more gives 0, or to the right the sign of a negative number."""
    dtype = dtype_of(inputs[0])
    right = c.text("direction") == "RIGHT"
    width, zero = tirx.const(int(math.log2(np.dtype(dtype).itemsize * 8)), dtype), tirx.const(0, dtype)
    signed = dtype.startswith("int")

    def value(a: Expr, b: Expr) -> Expr:
        inside = tirx.shift_right(b, width) == zero  # a negative distance counts as a large one
        safe = tirx.Select(inside, b, zero)
        moved = tirx.shift_right(a, safe) if right else tirx.shift_left(a, safe)
        rest = tirx.Select(a < zero, tirx.const(-1, dtype), zero) if right and signed else zero
        return tirx.Select(inside, moved, rest)

    return elementwise_map(c, value, *spread(c, inputs))


def cast(c: Context, inputs: Inputs) -> Outputs:
    """Cast of floats to int32 or int64: the least integer where the float is out of range or NaN, as on x86-64."""
    (x,) = inputs
    target = str(c.node.outputs[0].dtype.numpy()) if c.node.outputs[0].dtype is not None else ""
    source = dtype_of(x)
    if source not in FLOATS or target not in ("int32", "int64") or isinstance(x, GenericConst):
        return NotImplemented
    wide = "float32" if source == "float16" else source
    limit = float(2 ** (31 if target == "int32" else 63))

    def value(element: Expr) -> Expr:
        element = element.astype(wide)
        inside = tirx.all(element >= tirx.const(-limit, wide), element < tirx.const(limit, wide))
        least = tirx.const(np.iinfo(target).min, target)
        return tirx.Select(inside, tirx.Cast(target, tirx.Select(inside, element, tirx.const(0, wide))), least)

    return elementwise_map(c, value, x)


def bit_cast(c: Context, inputs: Inputs) -> Outputs:
    """BitCast between types of one size."""
    dtype = c.node.outputs[0].dtype
    if dtype is None or "bool" in (target := str(dtype.numpy()), dtype_of(inputs[0])):
        return NotImplemented
    if dtype.itemsize != np.dtype(dtype_of(inputs[0])).itemsize or "bfloat16" in (target, dtype_of(inputs[0])):
        return NotImplemented
    return elementwise_map(c, lambda x: tirx.reinterpret(target, x), inputs[0])


def lp_normalization(c: Context, inputs: Inputs) -> Outputs:
    """x / |x|_p along an axis, and 0 where the norm is 0."""
    (x,) = inputs
    dtype = dtype_of(x)
    if dtype not in ("float32", "float64"):
        return NotImplemented
    axis = c.integer("axis", -1)
    emit = c.builder.emit
    if c.integer("p", 2) == 1:
        norm = emit(relax.op.sum(emit(relax.op.abs(x)), axis, keepdims=True))
    else:
        norm = emit(relax.op.sqrt(emit(relax.op.sum(emit(relax.op.multiply(x, x)), axis, keepdims=True))))
    norms = emit(relax.op.broadcast_to(norm, shape_of(x)))
    zero = tirx.const(0, dtype)
    return elementwise_map(c, lambda a, b: tirx.if_then_else(b == zero, zero, a / b), x, norms)
