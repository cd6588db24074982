"""Integer arithmetic of quantized models: exact sums in int32, one rounding at the end.

    y = saturate(round(sum of (a - a_zero) (b - b_zero) * (a_scale b_scale / y_scale)) + y_zero)

Rounding is that of ONNX Runtime: the sum becomes a float, is multiplied by one factor, and goes to the nearest integer,
ties to the even one. The sums are exact, where ONNX Runtime's kernels for uint8 times int8 saturate pairs of products
on processors without VNNI.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tvm import relax

from graphopt.targets.converters.base import EPILOGUE, OPAQUE, Context, Converter, dtype_of, shape_of
from graphopt.targets.converters.convolution import begin_pads
from graphopt.targets.definitions import is_small
from graphopt.targets.kernels import integer_conv, integer_gemm
from graphopt.targets.kernels.common import SCHEDULED

BYTES = ("int8", "uint8")


def matmul_integer(c: Context, inputs: list[Any]) -> Any:
    """MatMulInteger."""
    total = _product(c, *inputs[:2], _zero(c, inputs, 2), _zero(c, inputs, 3))
    return total if total is NotImplemented else c.reshape(total, c.out_shape)


def qlinear_matmul(c: Context, inputs: list[Any]) -> Any:
    """QLinearMatMul."""
    a, a_scale, _, b, b_scale, _, y_scale, y_zero = inputs
    if not {dtype_of(scale) for scale in (a_scale, b_scale, y_scale)} <= {"float32"}:
        return NotImplemented
    total = _product(c, a, b, _zero(c, inputs, 2), _zero(c, inputs, 5))
    if total is NotImplemented:
        return NotImplemented
    ratio = _ratio(c, (1, 4, 6), (_rows(c, a_scale), b_scale, _rows(c, y_scale)))
    return c.reshape(requantized(c, total, ratio, _rows(c, y_zero)), c.out_shape)


def conv_integer(c: Context, inputs: list[Any]) -> Any:
    """ConvInteger."""
    return _convolution(c, *inputs[:2], _zero(c, inputs, 2), _zero(c, inputs, 3))


def qlinear_conv(c: Context, inputs: list[Any]) -> Any:
    """QLinearConv; the scale and the zero point of the weights may differ from filter to filter."""
    x, x_scale, _, w, w_scale, _, y_scale, y_zero = inputs[:8]
    total = _convolution(c, x, w, _zero(c, inputs, 2), _zero(c, inputs, 5))
    if total is NotImplemented:
        return NotImplemented
    filters = (1, -1, *(1,) * (len(c.out_shape) - 2))
    if len(inputs) > 8 and inputs[8] is not None:
        total = c.builder.emit(relax.op.add(total, c.builder.emit(relax.op.reshape(inputs[8], filters))))
    return requantized(c, total, _ratio(c, (1, 4, 6), (x_scale, _shaped(c, w_scale, filters), y_scale)), y_zero)


def requantized(c: Context, total: Any, ratio: Any, zero: Any) -> Any:
    """saturate(round(total * ratio) + zero) in the type of `zero`; all broadcast to the shape of `total`."""
    emit, limits = c.builder.emit, np.iinfo(dtype_of(zero))
    rounded = emit(relax.op.round(emit(relax.op.multiply(emit(relax.op.astype(total, "float32")), ratio))))
    shifted = emit(relax.op.add(rounded, emit(relax.op.astype(_shaped(c, zero), "float32"))))
    clipped = emit(relax.op.clip(shifted, float(limits.min), float(limits.max)))
    return emit(relax.op.astype(emit(relax.op.astype(clipped, "int32")), dtype_of(zero)))


def _zero(c: Context, inputs: list[Any], position: int) -> Any:
    """A zero point; None where it is absent or known to be zero."""
    if len(inputs) <= position or inputs[position] is None:
        return None
    constant = c.node.inputs[position].const_value
    # Definitions are shared by nodes whose large constants of two axes and more differ: those are not looked at.
    if constant is not None and (len(constant.shape) < 2 or is_small(constant)) and not constant.numpy().any():
        return None
    return inputs[position]


def _shaped(c: Context, x: Any, shape: tuple[int, ...] = (1,)) -> Any:
    """What is one number as [1], for a scalar would become part of the code; all else in `shape`, if one is given."""
    if math.prod(shape_of(x)) == 1:
        return c.reshape(x, (1,))
    return x if shape == (1,) else c.builder.emit(relax.op.reshape(x, shape))


def _rows(c: Context, x: Any) -> Any:
    """A scale or zero point [M] of rows as [M, 1]."""
    return c.reshape(x, (*shape_of(x), 1)) if len(shape_of(x)) == 1 else x


def _ratio(c: Context, positions: tuple[int, int, int], scales: tuple[Any, Any, Any]) -> Any:
    """a * b / y in float32, in this order, of the inputs at `positions`, which are shaped as `scales`."""
    constants = [c.node.inputs[position].const_value for position in positions]
    a, b, y = (_shaped(c, scale) for scale in scales)
    if all(constant is not None for constant in constants):
        found = [
            constant.numpy().reshape(shape_of(scale)) for constant, scale in zip(constants, (a, b, y), strict=True)
        ]
        with np.errstate(all="ignore"):
            return relax.const((found[0] * found[1]) / found[2], "float32")
    return c.builder.emit(relax.op.divide(c.builder.emit(relax.op.multiply(a, b)), y))


def _product(c: Context, a: Any, b: Any, a_zero: Any, b_zero: Any, transposed: bool = False) -> Any:
    """The sums [..., M, N] of a[..., M, K] and b[..., K, N], or of b[N, K] if it is `transposed`."""
    if dtype_of(a) not in BYTES or dtype_of(b) not in BYTES:
        return NotImplemented
    a = c.reshape(a, (1, *shape_of(a))) if len(shape_of(a)) == 1 else a
    b = c.reshape(b, (*shape_of(b), 1)) if len(shape_of(b)) == 1 else b
    sa, sb = shape_of(a), shape_of(b)
    m, k, n = sa[-2], sa[-1], sb[-2] if transposed else sb[-1]
    batch = np.broadcast_shapes(sa[:-2], sb[:-2])
    out = (*batch, m, n)
    if 0 in (*sa, *sb):
        return c.builder.emit(relax.op.zeros(out, "int32"))
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
    tile = integer_gemm.choose_tile(m, n, k, c.machine)
    centred = c.te("centre", integer_gemm.centre, left, *([] if rows is None else [rows]), pattern=OPAQUE)
    panels = c.te("pack", lambda v: integer_gemm.pack(v, tile.width, transposed), right, pattern=OPAQUE)
    further = []
    if columns is not None:
        further = [c.te("pack", lambda v: integer_gemm.pack_zero(v, n, tile.width), columns, pattern=OPAQUE)]
    return c.te(
        "integer_gemm",
        lambda p, q, z=None: integer_gemm.compute(p, q, out, parts, tile.rows, z),
        centred,
        panels,
        *further,
        pattern=EPILOGUE,
    )


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


def _convolution(c: Context, x: Any, w: Any, x_zero: Any, w_zero: Any) -> Any:
    """The sums [N, O, *out] of a convolution."""
    sx, sw, out = shape_of(x), shape_of(w), c.out_shape
    if dtype_of(x) not in BYTES or dtype_of(w) not in BYTES or len(sx) < 3 or 0 in (*sx, *sw):
        return NotImplemented
    groups, image, kernel = c.integer("group", 1), sx[2:], sw[2:]
    ones = (1,) * len(kernel)
    strides, dilations = c.integers("strides", ones), c.integers("dilations", ones)
    pads = begin_pads(c, image, kernel, strides, dilations, out[2:])
    if groups == 1 and math.prod(out[2:]) == 1 and kernel == image and not any(pads):
        # One output position that sees the whole image: a matrix product, with the weights on the streaming side.
        flat = (c.reshape(v, (shape[0], math.prod(shape[1:]))) for v, shape in ((x, sx), (w, sw)))
        return c.reshape(_product(c, *flat, x_zero, w_zero, transposed=True), out)
    filters = out[1] // groups
    row = math.prod(out[2:]) if math.prod(kernel) == 1 else out[-1]
    tile = integer_conv.choose_tile(filters, row, c.machine)
    window = integer_conv.Window(
        sx[0], groups, sw[1], filters, image, kernel, strides, dilations, pads, out[2:], *tile
    )
    packed = c.te("pack", lambda v: integer_conv.pack(v, window), w, pattern=OPAQUE)
    zeros = [None if zero is None else c.reshape(zero, (math.prod(shape_of(zero)),)) for zero in (x_zero, w_zero)]

    def prepare(v: Any, u: Any, *points: Any) -> list[Any]:
        further = iter(points)
        return integer_conv.prepare(v, u, window, *(None if zero is None else next(further) for zero in zeros))

    both = c.definitions.emit(
        c.builder,
        "prepare",
        prepare,
        (x, packed, *(zero for zero in zeros if zero is not None)),
        {"op_pattern": OPAQUE, SCHEDULED: 1},
    )
    lines, weights = (c.builder.emit(relax.TupleGetItem(both, i)) for i in range(2))
    return c.te("integer_conv", lambda p, q: integer_conv.compute(p, q, window), weights, lines, pattern=EPILOGUE)


STANDARD: dict[str, Converter] = {
    "ConvInteger": conv_integer,
    "MatMulInteger": matmul_integer,
    "QLinearConv": qlinear_conv,
    "QLinearMatMul": qlinear_matmul,
}
