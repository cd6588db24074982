"""Integer arithmetic of quantized models: exact sums in int32, one rounding at the end.

y = saturate(round(a_scale b_scale / y_scale * sum (a - a_zero) (b - b_zero)) + y_zero)
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tvm import relax, te, tirx

from graphopt.targets.converters.base import (
    INJECTIVE,
    REDUCTION,
    Context,
    Converter,
    dtype_of,
    elementwise_map,
    shape_of,
)
from graphopt.targets.kernels import extremes
from graphopt.targets.machine import CpuMachine


def _centred(c: Context, x: Any, zero: Any) -> Any:
    """x - zero in int32; `zero` is one number."""
    wide = c.builder.emit(relax.op.astype(x, "int32"))
    if zero is None:
        return wide
    one = c.builder.emit(relax.op.astype(c.reshape(zero, ()), "int32"))
    return c.builder.emit(relax.op.subtract(wide, one))


def _is_one(*values: Any) -> bool:
    return all(value is None or math.prod(shape_of(value)) == 1 for value in values)


def qlinear_matmul(c: Context, inputs: list[Any]) -> Any:
    """QLinearMatMul with one scale and one zero point for each tensor."""
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = inputs
    target = dtype_of(y_zero)
    if not _is_one(a_scale, a_zero, b_scale, b_zero, y_scale, y_zero) or target not in ("int8", "uint8"):
        return NotImplemented
    emit = c.builder.emit
    total = emit(relax.op.matmul(_centred(c, a, a_zero), _centred(c, b, b_zero)))
    scales = [emit(relax.op.astype(c.reshape(scale, ()), "float32")) for scale in (a_scale, b_scale, y_scale)]
    ratio = emit(relax.op.divide(emit(relax.op.multiply(scales[0], scales[1])), scales[2]))
    scaled = emit(relax.op.round(emit(relax.op.multiply(emit(relax.op.astype(total, "float32")), ratio))))
    shifted = emit(relax.op.add(scaled, emit(relax.op.astype(c.reshape(y_zero, ()), "float32"))))
    limits = np.iinfo(target)
    clipped = emit(
        relax.op.clip(shifted, tirx.const(float(limits.min), "float32"), tirx.const(float(limits.max), "float32"))
    )
    return relax.op.astype(clipped, target)


def dynamic_quantize(c: Context, inputs: list[Any]) -> Any:
    """y, scale, zero point of [min(x, 0), max(x, 0)] over 0..255; the scale of zeros is 1, as in ONNX Runtime."""
    (x,) = inputs
    if dtype_of(x) != "float32" or 0 in shape_of(x):
        return NotImplemented
    flat = c.reshape(x, (math.prod(shape_of(x)),))
    ends = [_extreme(c, flat, largest) for largest in (False, True)]
    zero, full = tirx.const(0, "float32"), tirx.const(255, "float32")

    def scale(low: Any, high: Any) -> Any:
        span = tirx.max(high, zero) - tirx.min(low, zero)
        return tirx.Select(span == zero, tirx.const(1, "float32"), span / full)

    def zero_point(low: Any, s: Any) -> Any:
        return tirx.nearbyint(tirx.min(tirx.max(zero - tirx.min(low, zero) / s, zero), full)).astype("uint8")

    def quantized(value: Any, s: Any, z: Any) -> Any:
        rounded = tirx.nearbyint(value / s) + z.astype("float32")
        return tirx.min(tirx.max(rounded, zero), full).astype("int32").astype("uint8")

    y_scale = elementwise_map(c, scale, *ends)
    y_zero = elementwise_map(c, zero_point, ends[0], y_scale)
    y = c.te(
        "quantize",
        lambda v, s, z: te.compute(v.shape, lambda *i: quantized(v(*i), s(), z()), name="quantize"),
        *(x, y_scale, y_zero),
        pattern=INJECTIVE,
    )
    return [y, y_scale, y_zero]


def _extreme(c: Context, x: Any, largest: bool) -> Any:
    if isinstance(c.machine, CpuMachine):
        machine = c.machine
        return c.te("extreme", lambda v: extremes.compute(v, largest, machine), x, pattern=REDUCTION)
    return c.builder.emit((relax.op.max if largest else relax.op.min)(x, axis=0))


STANDARD: dict[str, Converter] = {"DynamicQuantizeLinear": dynamic_quantize, "QLinearMatMul": qlinear_matmul}
