"""Integer arithmetic of quantized models: exact sums in int32, one rounding at the end.

    y = saturate(round(sum of (a - a_zero) (b - b_zero) * (a_scale b_scale / y_scale)) + y_zero)

Rounding is that of ONNX Runtime: the sum becomes a float, is multiplied by one factor, and goes to the nearest integer,
ties to the even one. The sums are exact, where ONNX Runtime's kernels for uint8 times int8 saturate pairs of products
on processors without VNNI.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax, te, tirx
from tvm.ir import Expr

from graphopt.graph.constness import numbers_of
from graphopt.targets.common.converters.base import Context, Converter, Inputs, Outputs, dtype_of, shape_of
from graphopt.targets.common.converters.linear import saturated
from graphopt.targets.common.kernels.blocks import dims

BYTES = ("int8", "uint8")


@dataclass(frozen=True, slots=True)
class Factor:
    """A tensor of bytes, its zero point (None where it is known to be zero), and its constant numbers, if any."""

    value: relax.Expr
    zero: relax.Expr | None
    known: NDArray[Any] | None

    @property
    def signed(self) -> bool:
        """Whether the bytes are int8."""
        return dtype_of(self.value) == "int8"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return shape_of(self.value)


@dataclass(frozen=True, slots=True)
class Rescaling:
    """Requantizes a sum: saturate(round((sum + bias) * ratio) + zero) in the type of `zero`.

    `ratio` is [1] or has one entry for each column of a GEMM or filter of a convolution, as `bias` has; `zero` is [1].
    """

    ratio: relax.Expr
    zero: relax.Expr
    bias: relax.Expr | None = None

    def operands(self) -> dict[str, relax.Expr]:
        """The operands that are present, by name."""
        every = {"ratio": self.ratio, "y_zero": self.zero, "bias": self.bias}
        return {name: operand for name, operand in every.items() if operand is not None}

    @staticmethod
    def element(operands: dict[str, te.Tensor]) -> Callable[[Expr | te.TensorSlice, Expr], Expr] | None:
        """The function of one sum and its channel, from the TE tensors of `operands`; None where there are none."""
        if "ratio" not in operands:
            return None
        ratio, zero, bias = operands["ratio"], operands["y_zero"], operands.get("bias")

        def element(total: Expr | te.TensorSlice, channel: Expr) -> Expr:
            total = total if bias is None else total + bias[channel]
            rounded = tirx.nearbyint(total.astype("float32") * ratio[0 if dims(ratio) == [1] else channel])
            return saturated(rounded + zero[0].astype("float32"), str(zero.dtype))

        return element


Sums = Callable[..., Outputs]
"""From a context, two factors and perhaps a `Rescaling` to the sums of a GEMM or a convolution, rescaled if asked."""


def matmul_integer(c: Context, inputs: Inputs, product: Sums) -> Outputs:
    """MatMulInteger."""
    factors = _factors(c, inputs, (0, 2), (1, 3))
    return NotImplemented if factors is None else _shaped(c, product(c, *factors), c.out_shape)


def conv_integer(c: Context, inputs: Inputs, convolution: Sums) -> Outputs:
    """ConvInteger."""
    factors = _factors(c, inputs, (0, 2), (1, 3))
    return NotImplemented if factors is None else convolution(c, *factors)


def qlinear_matmul(c: Context, inputs: Inputs, product: Sums) -> Outputs:
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


def qlinear_conv(c: Context, inputs: Inputs, convolution: Sums) -> Outputs:
    """QLinearConv; the scale and the zero point of the weights may differ from filter to filter."""
    _, x_scale, _, _, w_scale, _, y_scale, y_zero = inputs[:8]
    factors = _factors(c, inputs, (0, 2), (3, 5))
    if factors is None or any(math.prod(shape_of(x)) != 1 for x in (x_scale, y_scale, y_zero)):
        return NotImplemented
    ratio = _ratio(c, (1, 4, 6), (x_scale, w_scale, y_scale))
    return convolution(c, *factors, Rescaling(ratio, _vector(c, y_zero), inputs[8] if len(inputs) > 8 else None))


def _factors(c: Context, inputs: Inputs, *positions: tuple[int, int]) -> list[Factor] | None:
    """The factors from pairs of positions, tensor and zero point; None unless all tensors are bytes."""
    factors = []
    for value, zero in positions:
        if dtype_of(inputs[value]) not in BYTES:
            return None
        point = inputs[zero] if len(inputs) > zero else None
        known = None if point is None else _known(c, zero)
        # Definitions are shared by nodes whose matrices of bytes differ, so zeros are not searched in them.
        point = None if known is not None and known.ndim < 2 and not known.any() else point
        factors.append(Factor(inputs[value], point, _known(c, value)))
    return factors


def _known(c: Context, position: int) -> Any:
    """The numbers of an input that is constant."""
    return numbers_of(c.node.inputs[position])


def _shaped(c: Context, total: Outputs, shape: tuple[int, ...]) -> Outputs:
    return total if total is NotImplemented else c.reshape(total, shape)


def _vector(c: Context, x: relax.Expr) -> relax.Expr:
    """A single number as [1], since a scalar would become part of the code."""
    return c.reshape(x, (1,)) if math.prod(shape_of(x)) == 1 else x


def _rows(c: Context, x: relax.Expr) -> relax.Expr:
    """A scale or zero point [M] of rows as [M, 1]."""
    return c.reshape(x, (*shape_of(x), 1)) if len(shape_of(x)) == 1 else x


def _ratio(
    c: Context, positions: tuple[int, int, int], scales: tuple[relax.Expr, relax.Expr, relax.Expr]
) -> relax.Expr:
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


def _requantized(c: Context, total: relax.Expr, ratio: relax.Expr, zero: relax.Expr) -> relax.Expr:
    """Rescale `total` as `Rescaling` does, with operands that broadcast to its shape in any way."""
    emit, limits = c.builder.emit, np.iinfo(dtype_of(zero))
    rounded = emit(relax.op.round(emit(relax.op.multiply(emit(relax.op.astype(total, "float32")), ratio))))
    shifted = emit(relax.op.add(rounded, emit(relax.op.astype(_vector(c, zero), "float32"))))
    low, high = (tirx.const(float(limit), "float32") for limit in (limits.min, limits.max))
    clipped = emit(relax.op.astype(emit(relax.op.clip(shifted, low, high)), "int32"))
    return emit(relax.op.astype(clipped, dtype_of(zero)))


def converters(product: Sums, convolution: Sums) -> dict[str, Converter]:
    """The converters of the operators, with a target's own GEMM and convolution."""
    return {
        "ConvInteger": partial(conv_integer, convolution=convolution),
        "MatMulInteger": partial(matmul_integer, product=product),
        "QLinearConv": partial(qlinear_conv, convolution=convolution),
        "QLinearMatMul": partial(qlinear_matmul, product=product),
    }
