"""QuantizeLinear, DequantizeLinear, DynamicQuantizeLinear: one scale, one for each entry of an axis, or for each block.

    q = saturate(round(x / scale) + zero)          x = (q - zero) * scale

As in ONNX Runtime, fp16 is computed in float32, ties round to even, and NaN gives the smallest integer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from tvm import relax, te, tirx
from tvm.ir import Expr

from graphopt.targets.common.converters.base import (
    BROADCAST,
    ELEMENTWISE,
    FLOATS,
    INJECTIVE,
    Context,
    Converter,
    Inputs,
    Outputs,
    dtype_of,
    shape_of,
)
from graphopt.targets.common.converters.index import known
from graphopt.targets.common.kernels.blocks import const

INTEGERS = ("int8", "uint8", "int16", "uint16")


def quantize_linear(c: Context, inputs: Inputs) -> Outputs:
    """QuantizeLinear of floats."""
    x, scale, zero = (*inputs, None)[:3]
    target = _target(c)
    if dtype_of(x) not in FLOATS[:2] or dtype_of(scale) not in FLOATS[:2] or target not in INTEGERS:
        return NotImplemented
    if c.integer("precision"):
        return NotImplemented

    def define(
        v: te.Tensor, s: te.Tensor, z: te.Tensor | None, at: Callable[[Sequence[Expr]], list[Expr | int]]
    ) -> te.Tensor:
        def element(*index: Expr) -> Expr:
            quotient = v(*index).astype("float32") / s(*at(index)).astype("float32")
            centre = const(0.0, "float32") if z is None else z(*at(index)).astype("float32")
            return saturated(tirx.nearbyint(quotient) + centre, target)

        return te.compute(v.shape, element, name="quantize")

    return _emit(c, define, x, scale, zero)


def dequantize_linear(c: Context, inputs: Inputs) -> Outputs:
    """DequantizeLinear of integers of 8, 16 or 32 bits."""
    x, scale, zero = (*inputs, None)[:3]
    if dtype_of(x) not in (*INTEGERS, "int32") or dtype_of(scale) not in FLOATS[:2] or c.integer("output_dtype"):
        return NotImplemented

    def define(
        v: te.Tensor, s: te.Tensor, z: te.Tensor | None, at: Callable[[Sequence[Expr]], list[Expr | int]]
    ) -> te.Tensor:
        def element(*index: Expr) -> Expr:
            # Exact in float32 but for 32 bits. LLVM narrows the difference of bytes to 16 bits and loses its sign.
            wide = "int32" if v.dtype == "int32" else "float32"
            value = v(*index).astype(wide)
            if z is not None:
                value = value - z(*at(index)).astype(wide)
            return (value.astype("float32") * s(*at(index)).astype("float32")).astype(s.dtype)

        return te.compute(v.shape, element, name="dequantize")

    return _emit(c, define, x, scale, zero)


def saturated(value: Expr, dtype: str) -> Expr:
    """Cast an integer in float32 to `dtype`, clamped to its limits; NaN gives the lower limit."""
    limits = np.iinfo(dtype)
    low, high = const(float(limits.min), "float32"), const(float(limits.max), "float32")
    # Not as selections, which repeat the value and become scalars. The maximum of NaN and `low` is `low`.
    return tirx.min(tirx.max(value, low), high).astype("int32").astype(dtype)


def _target(c: Context) -> str:
    dtype = c.node.outputs[0].dtype
    return "" if dtype is None else str(dtype.numpy())


def _emit(
    c: Context, define: Callable[..., te.Tensor], x: relax.Expr, scale: relax.Expr, zero: relax.Expr | None
) -> Outputs:
    """Emit one kernel, with `scale` and `zero` indexed per tensor, per axis or per block, as their shape says."""
    shape, scales = shape_of(x), shape_of(scale)
    axis = c.integer("axis", 1)
    axis += len(shape) if axis < 0 else 0
    block = c.integer("block_size")
    single = math.prod(scales) == 1 and not block
    if single:
        scale, zero = (None if v is None else c.reshape(v, (1,)) for v in (scale, zero))
    elif scales != ((*shape[:axis], -(-shape[axis] // block), *shape[axis + 1 :]) if block else (shape[axis],)):
        return NotImplemented

    def at(index: Sequence[Expr]) -> list[Expr | int]:
        if single:
            return [0]
        if not block:
            return [index[axis]]
        return [tirx.floordiv(i, block) if number == axis else i for number, i in enumerate(index)]

    return c.te(
        c.node.op_type.removesuffix("Linear").lower(),
        lambda v, s, z=None: define(v, s, z, at),
        x,
        scale,
        *([] if zero is None else [zero]),
        pattern=INJECTIVE if block else ELEMENTWISE if single else BROADCAST,
    )


def dynamic_quantize(ends: Callable[[Context, relax.Expr], relax.Expr]) -> Converter:
    """DynamicQuantizeLinear; `ends` gives [2], the largest of a tensor and the largest of its negative."""
    return partial(_dynamic_quantize, ends)


def _dynamic_quantize(ends: Callable[[Context, relax.Expr], relax.Expr], c: Context, inputs: Inputs) -> Outputs:
    """y, scale, zero point of [min(x, 0), max(x, 0)] over 0..255; the scale of zeros is 1, as in ONNX Runtime."""
    (x,) = inputs
    if dtype_of(x) != "float32":
        return NotImplemented
    if 0 in shape_of(x):
        return [known(np.zeros(shape_of(x), np.uint8)), known(np.ones((), np.float32)), known(np.zeros((), np.uint8))]
    both = ends(c, x)
    zero, full = tirx.const(0, "float32"), tirx.const(255, "float32")

    def scale(both: te.Tensor) -> te.Tensor:
        span = tirx.max(both[0], zero) + tirx.max(both[1], zero)
        return te.compute((), lambda: tirx.Select(span == zero, tirx.const(1, "float32"), span / full), name="scale")

    def zero_point(both: te.Tensor, s: te.Tensor) -> te.Tensor:
        place = tirx.min(tirx.max(both[1], zero) / s(), full)
        return te.compute((), lambda: tirx.nearbyint(place).astype("uint8"), name="zero_point")

    def quantized(value: Expr, s: Expr, z: Expr) -> Expr:
        rounded = tirx.nearbyint(value / s) + z.astype("float32")
        return tirx.min(tirx.max(rounded, zero), full).astype("int32").astype("uint8")

    y_scale = c.te("quantization_scale", scale, both, pattern=INJECTIVE)
    y_zero = c.te("quantization_zero", zero_point, both, y_scale, pattern=INJECTIVE)
    y = c.te(
        "quantize",
        lambda v, s, z: te.compute(v.shape, lambda *i: quantized(v(*i), s(), z()), name="quantize"),
        *(x, y_scale, y_zero),
        pattern=INJECTIVE,
    )
    return [y, y_scale, y_zero]


def largest_ends(c: Context, x: relax.Expr) -> relax.Var:
    """[2], the largest of x and the largest of -x."""
    high, low = (c.builder.emit(reduce(x)) for reduce in (relax.op.max, relax.op.min))

    def joined(a: te.Tensor, b: te.Tensor) -> te.Tensor:
        return te.compute((2,), lambda i: tirx.Select(i == 0, a(), b() * tirx.const(-1, "float32")), name="ends")

    return c.te("ends", joined, high, low, pattern=INJECTIVE)


STANDARD: dict[str, Converter] = {
    "DequantizeLinear": dequantize_linear,
    "DynamicQuantizeLinear": dynamic_quantize(largest_ends),
    "QuantizeLinear": quantize_linear,
}
