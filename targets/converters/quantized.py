"""Integer arithmetic of quantized models: exact sums in int32, one rounding at the end.

y = saturate(round(a_scale b_scale / y_scale * sum (a - a_zero) (b - b_zero)) + y_zero)
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tvm import relax, te, tirx

from graphopt.targets.converters.base import INJECTIVE, OPAQUE, REDUCTION, Context, Converter, dtype_of, shape_of
from graphopt.targets.kernels import extremes
from graphopt.targets.kernels.common import const


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
    """DynamicQuantizeLinear: x over all of [min(x, 0), max(x, 0)] in 256 steps; all zeros are zeros with scale 1."""
    shape = shape_of(inputs[0])
    if 0 in shape or dtype_of(inputs[0]) != "float32":
        return NotImplemented
    flat = c.reshape(inputs[0], (math.prod(shape),))
    low, high = (
        c.te("extreme", lambda v, largest=largest: extremes.compute(v, largest, c.machine), flat, pattern=REDUCTION)
        for largest in (False, True)
    )
    zero, most = const(0.0, "float32"), const(255.0, "float32")

    def parameters(least: Any, largest: Any) -> list[Any]:
        def bounds() -> tuple[Any, Any]:
            return tirx.min(least(), zero), tirx.max(largest(), zero)

        def step() -> Any:
            first, last = bounds()
            return tirx.Select(first == last, const(1.0, "float32"), (last - first) / most)

        scale = te.compute((), step, name="scale")
        exact = te.compute((), lambda: zero - bounds()[0] / scale(), name="exact")
        rounded = te.compute((), lambda: tirx.nearbyint(tirx.max(zero, tirx.min(most, exact()))), name="rounded")
        return [scale, te.compute((), lambda: rounded().astype("uint8"), name="zero")]

    both = c.builder.emit(c.te("parameters", parameters, low, high, pattern=OPAQUE))
    scale, offset = relax.TupleGetItem(both, 0), relax.TupleGetItem(both, 1)

    def quantized(x: Any, s: Any, o: Any) -> Any:
        def element(*i: Any) -> Any:
            wide = tirx.nearbyint(x[i] / s()) + o().astype("float32")
            return tirx.max(zero, tirx.min(most, wide)).astype("int32").astype("uint8")

        return te.compute(x.shape, element, name="quantized")

    emitted = c.builder.emit(scale), c.builder.emit(offset)
    return [c.te("quantize", quantized, inputs[0], *emitted, pattern=INJECTIVE), *emitted]


STANDARD: dict[str, Converter] = {
    "DynamicQuantizeLinear": dynamic_quantize,
    "QLinearMatMul": qlinear_matmul,
}
