"""Integer arithmetic of quantized models: exact sums in int32, one rounding at the end.

    y = saturate(round(sum of (a - a_zero) (b - b_zero) * (a_scale b_scale / y_scale)) + y_zero)

Rounding is that of ONNX Runtime: the sum becomes a float, is multiplied by one factor, and goes to the nearest integer,
ties to the even one. The sums are exact, where ONNX Runtime's kernels for uint8 times int8 saturate pairs of products
on processors without VNNI.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from tvm import relax, tirx

from graphopt.targets.converters.base import EPILOGUE, OPAQUE, Context, Converter, dtype_of, shape_of
from graphopt.targets.converters.convolution import begin_pads
from graphopt.targets.kernels import dots, integer_conv, integer_gemm
from graphopt.targets.kernels.common import SCHEDULED, const, dims
from graphopt.targets.kernels.integer_conv import Window

BYTES = ("int8", "uint8")


def matmul_integer(c: Context, inputs: list[Any]) -> Any:
    """MatMulInteger."""
    total = _product(c, *inputs[:2], _zero(c, inputs, 2), _zero(c, inputs, 3), constant(c, 1))
    return total if total is NotImplemented else c.reshape(total, c.out_shape)


def qlinear_matmul(c: Context, inputs: list[Any]) -> Any:
    """QLinearMatMul."""
    a, a_scale, _, b, b_scale, _, y_scale, y_zero = inputs
    if not {dtype_of(scale) for scale in (a_scale, b_scale, y_scale)} <= {"float32"}:
        return NotImplemented
    ratio = _ratio(c, (1, 4, 6), (_rows(c, a_scale), b_scale, _rows(c, y_scale)))
    zeros = _zero(c, inputs, 2), _zero(c, inputs, 5)
    if all(math.prod(shape_of(x)) == 1 for x in (a_scale, y_scale, y_zero)) and math.prod(shape_of(b_scale)[:-1]) == 1:
        columns = c.reshape(ratio, (math.prod(shape_of(ratio)),))
        total = _product(c, a, b, *zeros, constant(c, 3), rescale=(columns, _shaped(c, y_zero)))
    else:
        total = _product(c, a, b, *zeros, constant(c, 3))
        total = total if total is NotImplemented else requantized(c, total, ratio, _rows(c, y_zero))
    return total if total is NotImplemented else c.reshape(total, c.out_shape)


def conv_integer(c: Context, inputs: list[Any]) -> Any:
    """ConvInteger."""
    return _convolution(c, *inputs[:2], _zero(c, inputs, 2), _zero(c, inputs, 3), constant(c, 1))


def qlinear_conv(c: Context, inputs: list[Any]) -> Any:
    """QLinearConv; the scale and the zero point of the weights may differ from filter to filter."""
    x, x_scale, _, w, w_scale, _, y_scale, y_zero = inputs[:8]
    ratio = _ratio(c, (1, 4, 6), (x_scale, w_scale, y_scale))
    bias = inputs[8] if len(inputs) > 8 else None
    zeros = _zero(c, inputs, 2), _zero(c, inputs, 5)
    return _convolution(c, x, w, *zeros, constant(c, 3), rescale=(ratio, _shaped(c, y_zero), bias))


def requantized(c: Context, total: Any, ratio: Any, zero: Any) -> Any:
    """saturate(round(total * ratio) + zero) in the type of `zero`; all broadcast to the shape of `total`."""
    emit, limits = c.builder.emit, np.iinfo(dtype_of(zero))
    rounded = emit(relax.op.round(emit(relax.op.multiply(emit(relax.op.astype(total, "float32")), ratio))))
    shifted = emit(relax.op.add(rounded, emit(relax.op.astype(_shaped(c, zero), "float32"))))
    clipped = emit(relax.op.clip(shifted, float(limits.min), float(limits.max)))
    return emit(relax.op.astype(emit(relax.op.astype(clipped, "int32")), dtype_of(zero)))


def rescaled(ratio: Any, zero: Any, bias: Any = None) -> Callable[[Any, Any], Any]:
    """The same for one sum and a channel, after `bias`[channels]; `ratio` is [1] or [channels], `zero` [1]."""
    limits = np.iinfo(str(zero.dtype))

    def element(total: Any, channel: Any) -> Any:
        total = total if bias is None else total + bias[channel]
        rounded = tirx.nearbyint(total.astype("float32") * ratio[0 if dims(ratio) == [1] else channel])
        shifted = rounded + zero[0].astype("float32")
        low, high = const(float(limits.min), "float32"), const(float(limits.max), "float32")
        return tirx.max(tirx.min(shifted, high), low).astype("int32").astype(str(zero.dtype))

    return element


def constant(c: Context, position: int) -> Any:
    """The input's numbers, if they are known."""
    found = c.node.inputs[position].const_value
    return None if found is None else found.numpy()


def _zero(c: Context, inputs: list[Any], position: int) -> Any:
    """A zero point; None where it is absent or known to be zero."""
    if len(inputs) <= position or inputs[position] is None:
        return None
    found = constant(c, position)
    return None if found is not None and not found.any() else inputs[position]


def _shaped(c: Context, x: Any) -> Any:
    """What is one number as [1], for a scalar would become part of the code."""
    return c.reshape(x, (1,)) if math.prod(shape_of(x)) == 1 else x


def _rows(c: Context, x: Any) -> Any:
    """A scale or zero point [M] of rows as [M, 1]."""
    return c.reshape(x, (*shape_of(x), 1)) if len(shape_of(x)) == 1 else x


def _ratio(c: Context, positions: tuple[int, int, int], scales: tuple[Any, Any, Any]) -> Any:
    """a * b / y in float32, in this order, of the inputs at `positions`, which are shaped as `scales`."""
    constants = [constant(c, position) for position in positions]
    a, b, y = (_shaped(c, scale) for scale in scales)
    if all(found is not None for found in constants):
        a, b, y = (found.reshape(shape_of(scale)) for found, scale in zip(constants, (a, b, y), strict=True))
        with np.errstate(all="ignore"):
            return relax.const((a * b) / y, "float32")
    return c.builder.emit(relax.op.divide(c.builder.emit(relax.op.multiply(a, b)), y))


def _shift(x_zero: Any, signed: bool) -> Callable[..., Any]:
    """What the bytes of an operand are too large by where they are unsigned: the zero point, 128 more for int8."""

    def element(*index: Any) -> Any:
        zero = const(0, "int32") if x_zero is None else x_zero(*index).astype("int32")
        return zero + 128 if signed else zero

    return element


def _product(
    c: Context,
    a: Any,
    b: Any,
    a_zero: Any,
    b_zero: Any,
    weights: Any,
    transposed: bool = False,
    rescale: tuple[Any, ...] | None = None,
) -> Any:
    """The sums [..., M, N] of a[..., M, K] and b[..., K, N], or of b[N, K] if it is `transposed`.

    Args:
        weights: `b`, where it is known.
        rescale: what `rescaled` takes, for columns; then the result is what that makes of the sums.
    """
    if dtype_of(a) not in BYTES or dtype_of(b) not in BYTES:
        return NotImplemented
    a = c.reshape(a, (1, *shape_of(a))) if len(shape_of(a)) == 1 else a
    b = c.reshape(b, (*shape_of(b), 1)) if len(shape_of(b)) == 1 else b
    sa, sb = shape_of(a), shape_of(b)
    m, k, n = sa[-2], sa[-1], sb[-2] if transposed else sb[-1]
    batch = np.broadcast_shapes(sa[:-2], sb[:-2])
    out = (*batch, m, n)
    if 0 in (*sa, *sb):
        return NotImplemented
    if math.prod(sb[:-2]) == 1:  # every leading axis of the left side is one more row
        lead, rights, (count, m), parts = sa[:-2], (), (1, math.prod(sa[:-1])), (0, len(out) - 1, 1)
        lead = (*(1,) * (len(batch) - len(lead)), *lead)
    else:
        lead = () if math.prod(sa[:-2]) == 1 else batch
        rights, count, parts = batch, math.prod(lead), (len(batch), 1, 1)
    left = c.reshape(_spread(c, a, (*lead, *sa[-2:])), (count, m, k))
    right = c.reshape(_spread(c, b, (*rights, *sb[-2:])), (math.prod(rights), *sb[-2:]))
    rows = None if a_zero is None else _points(c, a_zero, (*lead, sa[-2]), (count, m), -1)
    columns = None if b_zero is None else _points(c, b_zero, (*rights, n), (math.prod(rights), n), -2)
    unit = dots.WORDS if columns is not None else dots.unit(c.machine, weights, dtype_of(b))
    tile = integer_gemm.choose_tile(m, n, k, c.machine, unit)
    panels = c.te("pack", lambda v: integer_gemm.pack(v, tile.width, unit, transposed), right, pattern=OPAQUE)
    further: dict[str, Any] = {}
    signed = dtype_of(a) == "int8"
    if unit == dots.WORDS:
        given = [] if rows is None else [rows]
        left = c.te("left", lambda v, z=None: integer_gemm.left(v, unit, z), left, *given, pattern=OPAQUE)
        if columns is not None:
            further["zero"] = c.te("pack", lambda v: integer_gemm.pack_zero(v, n, tile.width), columns, pattern=OPAQUE)
    else:
        if signed or k % unit:
            left = c.te("left", lambda v: integer_gemm.left(v, unit), left, pattern=OPAQUE)
        else:
            left = c.reshape(left, (count, m, k // unit, unit))
        if signed or rows is not None:
            further["columns"] = c.te("column_sums", integer_gemm.column_sums, panels, pattern=OPAQUE)
            further |= {} if rows is None else {"rows": rows}
    further |= _named(rescale)

    def define(p: Any, q: Any, *more: Any) -> Any:
        found = dict(zip(further, more, strict=True))
        shift = None
        if "columns" in found:
            points = found.get("rows")

            def at(i: Any, row: Any) -> Any:
                return points[tuple(0 if e == 1 else x for e, x in zip(dims(points), (i, row), strict=True))]

            shift = _shift(None if points is None else at, signed)
        return integer_gemm.compute(
            p,
            q,
            out,
            parts,
            tile.rows,
            zero=found.get("zero"),
            shift=shift,
            columns=found.get("columns"),
            requantize=_requantize(found),
        )

    return c.te("integer_gemm", define, left, panels, *further.values(), pattern=EPILOGUE)


def _named(rescale: tuple[Any, ...] | None) -> dict[str, Any]:
    """The operands of `rescaled` by name, without those that are absent."""
    return {name: x for name, x in zip(("ratio", "y_zero", "bias"), rescale or (), strict=False) if x is not None}


def _requantize(found: dict[str, Any]) -> Callable[[Any, Any], Any] | None:
    return rescaled(found["ratio"], found["y_zero"], found.get("bias")) if "ratio" in found else None


def _spread(c: Context, x: Any, shape: tuple[int, ...]) -> Any:
    """`x` repeated along its batch axes to `shape`; a view where nothing repeats."""
    if math.prod(shape) == math.prod(shape_of(x)):
        return c.reshape(x, shape)
    return c.builder.emit(relax.op.broadcast_to(x, shape))


def _points(c: Context, zero: Any, axes: tuple[int, ...], shape: tuple[int, int], single: int) -> Any:
    """Zero points along `axes` as `shape`, [1, 1] if there is one.

    They have one axis, the last one, or the rank of the matrix that they belong to, whose axis `single` has one entry.
    """
    found = list(shape_of(zero))
    if math.prod(found) == 1:
        return c.reshape(zero, (1, 1))
    if len(found) > 1:
        del found[single]
    return c.reshape(_spread(c, c.reshape(zero, tuple(found)), axes), shape)


def _convolution(
    c: Context, x: Any, w: Any, x_zero: Any, w_zero: Any, weights: Any, rescale: tuple[Any, ...] | None = None
) -> Any:
    """The sums [N, O, *out] of a convolution; what is `rescaled` of them, if its arguments are given."""
    sx, sw, out = shape_of(x), shape_of(w), c.out_shape
    if dtype_of(x) not in BYTES or dtype_of(w) not in BYTES or len(sx) < 3 or 0 in (*sx, *sw):
        return NotImplemented
    groups, image, kernel = c.integer("group", 1), sx[2:], sw[2:]
    ones = (1,) * len(kernel)
    strides, dilations = c.integers("strides", ones), c.integers("dilations", ones)
    pads = begin_pads(c, image, kernel, strides, dilations, out[2:])
    x_zero, w_zero = (None if v is None else c.reshape(v, (math.prod(shape_of(v)),)) for v in (x_zero, w_zero))
    if groups == 1 and math.prod(out[2:]) == 1 and kernel == image and not any(pads):
        # One output position that sees the whole image: a matrix product, with the weights on the streaming side.
        flat = (c.reshape(v, (shape[0], math.prod(shape[1:]))) for v, shape in ((x, sx), (w, sw)))
        return c.reshape(_product(c, *flat, x_zero, w_zero, weights, transposed=True, rescale=rescale), out)
    filters = out[1] // groups
    unit = dots.WORDS if w_zero is not None else dots.unit(c.machine, weights, dtype_of(w))
    window = Window(sx[0], groups, sw[1], filters, image, kernel, strides, dilations, pads, out[2:], unit)
    rows, width = integer_conv.choose_tile(filters, window.kept[-1], c.machine)
    window = replace(window, rows=rows, width=width)
    packed = c.te("pack", lambda v: integer_conv.pack(v, window), w, pattern=OPAQUE)
    operands = {"packed": packed if unit == dots.WORDS else None, "x_zero": x_zero, "w_zero": w_zero}
    operands = {name: operand for name, operand in operands.items() if operand is not None}

    def prepare(v: Any, *more: Any) -> list[Any]:
        found = dict(zip(operands, more, strict=True))
        return integer_conv.prepare(v, found.get("packed"), window, found.get("x_zero"), found.get("w_zero"))

    made = c.definitions.emit(
        c.builder, "prepare", prepare, (x, *operands.values()), {"op_pattern": OPAQUE, SCHEDULED: 1}
    )
    further: dict[str, Any] = {}
    signed = dtype_of(x) == "int8"
    if unit == dots.WORDS:
        lines, packed = (c.builder.emit(relax.TupleGetItem(made, i)) for i in range(2))
    else:
        lines = made
        if signed or x_zero is not None:
            further["sums"] = c.te("filter_sums", integer_conv.filter_sums, w, pattern=OPAQUE)
            further |= {} if x_zero is None else {"x_zero": x_zero}
    further |= _named(rescale)

    def define(p: Any, q: Any, *more: Any) -> Any:
        found = dict(zip(further, more, strict=True))
        zero = found.get("x_zero")
        shift = _shift(None if zero is None else lambda: zero[0], signed) if "sums" in found else None
        return integer_conv.compute(
            p, q, window, shift=shift, sums_of_filters=found.get("sums"), requantize=_requantize(found)
        )

    return c.reshape(c.te("integer_conv", define, packed, lines, *further.values(), pattern=EPILOGUE), out)


STANDARD: dict[str, Converter] = {
    "ConvInteger": conv_integer,
    "MatMulInteger": matmul_integer,
    "QLinearConv": qlinear_conv,
    "QLinearMatMul": qlinear_matmul,
}
