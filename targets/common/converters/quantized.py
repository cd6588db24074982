"""Integer arithmetic of quantized models: exact sums in int32, one rounding at the end.

    y = saturate(round(sum of (a - a_zero) (b - b_zero) * (a_scale b_scale / y_scale)) + y_zero)

Rounding is that of ONNX Runtime: the sum becomes a float, is multiplied by one factor, and goes to the nearest integer,
ties to the even one. The sums are exact, where ONNX Runtime's kernels for uint8 times int8 saturate pairs of products
on processors without VNNI.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import relax, tirx

from graphopt.targets.common.converters.base import Context, Converter, dtype_of, shape_of
from graphopt.targets.cpu.converters.integers import BYTES, Factor, Rescaling, convolution, product

Sums = Callable[..., Any]
"""`product` or `convolution`, or what computes the same on another target."""


def matmul_integer(c: Context, inputs: list[Any], product: Sums = product) -> Any:
    """MatMulInteger."""
    factors = _factors(c, inputs, (0, 2), (1, 3))
    return NotImplemented if factors is None else _shaped(c, product(c, *factors), c.out_shape)


def conv_integer(c: Context, inputs: list[Any], convolution: Sums = convolution) -> Any:
    """ConvInteger."""
    factors = _factors(c, inputs, (0, 2), (1, 3))
    return NotImplemented if factors is None else convolution(c, *factors)


def qlinear_matmul(c: Context, inputs: list[Any], product: Sums = product) -> Any:
    """QLinearMatMul."""
    _, a_scale, _, _, b_scale, _, y_scale, y_zero = inputs
    factors = _factors(c, inputs, (0, 2), (3, 5))
    if factors is None:
        return NotImplemented
    ratio = _ratio(c, (1, 4, 6), (_rows(c, a_scale), b_scale, _rows(c, y_scale)))
    single = all(math.prod(shape_of(x)) == 1 for x in (a_scale, y_scale, y_zero))
    if single and math.prod(shape_of(b_scale)[:-1]) == 1:
        rescaling = Rescaling(c.reshape(ratio, (math.prod(shape_of(ratio)),)), _vector(c, y_zero))
        return _shaped(c, product(c, *factors, rescaling), c.out_shape)
    total = product(c, *factors)
    return (
        total if total is NotImplemented else _shaped(c, _requantized(c, total, ratio, _rows(c, y_zero)), c.out_shape)
    )


def qlinear_conv(c: Context, inputs: list[Any], convolution: Sums = convolution) -> Any:
    """QLinearConv; the scale and the zero point of the weights may differ from filter to filter."""
    _, x_scale, _, _, w_scale, _, y_scale, y_zero = inputs[:8]
    factors = _factors(c, inputs, (0, 2), (3, 5))
    if factors is None or any(math.prod(shape_of(x)) != 1 for x in (x_scale, y_scale, y_zero)):
        return NotImplemented
    ratio = _ratio(c, (1, 4, 6), (x_scale, w_scale, y_scale))
    return convolution(c, *factors, Rescaling(ratio, _vector(c, y_zero), inputs[8] if len(inputs) > 8 else None))


def _factors(c: Context, inputs: list[Any], *positions: tuple[int, int]) -> list[Factor] | None:
    """The tensors and zero points at pairs of positions; None where they are no bytes."""
    found = []
    for value, zero in positions:
        if dtype_of(inputs[value]) not in BYTES:
            return None
        point = inputs[zero] if len(inputs) > zero else None
        known = None if point is None else _known(c, zero)
        # Definitions are shared by nodes whose matrices of bytes differ, so in them zeros are not looked for.
        point = None if known is not None and known.ndim < 2 and not known.any() else point
        found.append(Factor(inputs[value], point, _known(c, value)))
    return found


def _known(c: Context, position: int) -> Any:
    """The numbers of an input that is constant."""
    value = c.node.inputs[position]
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _shaped(c: Context, total: Any, shape: tuple[int, ...]) -> Any:
    return total if total is NotImplemented else c.reshape(total, shape)


def _vector(c: Context, x: Any) -> Any:
    """What is one number as [1], for a scalar would become part of the code."""
    return c.reshape(x, (1,)) if math.prod(shape_of(x)) == 1 else x


def _rows(c: Context, x: Any) -> Any:
    """A scale or zero point [M] of rows as [M, 1]."""
    return c.reshape(x, (*shape_of(x), 1)) if len(shape_of(x)) == 1 else x


def _ratio(c: Context, positions: tuple[int, int, int], scales: tuple[Any, Any, Any]) -> Any:
    """a * b / y in float32, in this order, of the inputs at `positions`, which are shaped as `scales`."""
    known = [_known(c, position) for position in positions]
    if all(numbers is not None for numbers in known):
        shapes = [shape_of(_vector(c, scale)) for scale in scales]
        a, b, y = (numbers.astype(np.float32).reshape(shape) for numbers, shape in zip(known, shapes, strict=True))
        with np.errstate(all="ignore"):
            return relax.const((a * b) / y, "float32")
    emit = c.builder.emit
    a, b, y = (emit(relax.op.astype(_vector(c, scale), "float32")) for scale in scales)
    return emit(relax.op.divide(emit(relax.op.multiply(a, b)), y))


def _requantized(c: Context, total: Any, ratio: Any, zero: Any) -> Any:
    """As `Rescaling`, for operands that broadcast to the shape of `total` in any way."""
    emit, limits = c.builder.emit, np.iinfo(dtype_of(zero))
    rounded = emit(relax.op.round(emit(relax.op.multiply(emit(relax.op.astype(total, "float32")), ratio))))
    shifted = emit(relax.op.add(rounded, emit(relax.op.astype(_vector(c, zero), "float32"))))
    low, high = (tirx.const(float(limit), "float32") for limit in (limits.min, limits.max))
    clipped = emit(relax.op.astype(emit(relax.op.clip(shifted, low, high)), "int32"))
    return emit(relax.op.astype(clipped, dtype_of(zero)))


STANDARD: dict[str, Converter] = {
    "ConvInteger": conv_integer,
    "MatMulInteger": matmul_integer,
    "QLinearConv": qlinear_conv,
    "QLinearMatMul": qlinear_matmul,
}
