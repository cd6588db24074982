"""GEMMs and convolutions of bytes, summed exactly, for the operators in `common/converters/quantized.py`."""

from __future__ import annotations

import math

import numpy as np
from tvm import relax, te
from tvm.ir import Expr

from graphopt.targets.common.converters.base import EPILOGUE, INJECTIVE, OPAQUE, Context, Outputs, dtype_of, shape_of
from graphopt.targets.common.converters.pads import conv_begin_pads
from graphopt.targets.common.converters.quantized import Factor, Rescaling
from graphopt.targets.common.kernels.blocks import SCHEDULED, const, dims
from graphopt.targets.cpu.kernels.integer import conv, dots, gemm
from graphopt.targets.cpu.kernels.integer import lines as integer_lines
from graphopt.targets.cpu.kernels.integer.window import Window, choose_tile


def product(c: Context, a: Factor, b: Factor, rescaling: Rescaling | None = None, transposed: bool = False) -> Outputs:
    """The sums [..., M, N] of a[..., M, K] and b[..., K, N], or of b[N, K] if it is `transposed`; rescaled if asked.

    One axis is a row on the left, a column on the right.
    """
    if 0 in (*a.shape, *b.shape):
        return NotImplemented
    sa, sb = (1, *a.shape)[-max(2, len(a.shape)) :], (*b.shape, 1)[: max(2, len(b.shape))]
    m, k, n = sa[-2], sa[-1], sb[-2] if transposed else sb[-1]
    batch = np.broadcast_shapes(sa[:-2], sb[:-2])
    out = (*batch, m, n)
    if math.prod(sb[:-2]) == 1:  # every leading axis of the left side is one more row
        lead, rights, parts = (*(1,) * (len(batch) - len(sa) + 2), *sa[:-2]), (), (0, len(out) - 1, 1)
        count, m = 1, math.prod(sa[:-1])
    else:
        lead, rights, parts = () if math.prod(sa[:-2]) == 1 else batch, batch, (len(batch), 1, 1)
        count = math.prod(lead)
    left = c.reshape(c.broadcast(c.reshape(a.value, sa), (*lead, *sa[-2:])), (count, m, k))
    right = c.reshape(c.broadcast(c.reshape(b.value, sb), (*rights, *sb[-2:])), (math.prod(rights), *sb[-2:]))
    rows = None if a.zero is None else _points(c, a.zero, (*lead, sa[-2]), (count, m), -1)
    columns = None if b.zero is None else _points(c, b.zero, (*rights, n), (math.prod(rights), n), -2)
    unit = dots.WORDS if columns is not None else dots.unit(c.machine, b.known, dtype_of(b.value))
    tile = gemm.choose_tile(m, n, k, c.machine, unit)
    kind = dots.NAMES[unit]
    panels = c.te(f"pack_{kind}", lambda v: gemm.pack(v, tile.width, unit, transposed), right, pattern=OPAQUE)
    further: dict[str, relax.Expr] = {}
    if unit == dots.WORDS:
        given = [] if rows is None else [rows]
        left = c.te(f"left_{kind}", lambda v, z=None: gemm.left(v, unit, z), left, *given, pattern=OPAQUE)
        if columns is not None:
            further["zero"] = c.te("pack", lambda v: gemm.pack_zero(v, n, tile.width), columns, pattern=OPAQUE)
    else:
        if a.signed or k % unit:
            left = c.te(f"left_{kind}", lambda v: gemm.left(v, unit), left, pattern=OPAQUE)
        left = c.reshape(left, (count, m, gemm.units(k, unit), unit))
        if a.signed or rows is not None:
            further["columns"] = c.te("column_sums", gemm.column_sums, panels, pattern=OPAQUE)
            further |= {} if rows is None else {"rows": rows}
    further |= {} if rescaling is None else rescaling.operands()

    def define(p: te.Tensor, q: te.Tensor, *more: te.Tensor) -> te.Tensor:
        tensors = dict(zip(further, more, strict=True))
        shift = None
        if "columns" in tensors:
            points = tensors.get("rows")

            def shift(i: Expr | int, row: Expr) -> Expr:
                at = [] if points is None else [0 if e == 1 else x for e, x in zip(dims(points), (i, row), strict=True)]
                return _shift(None if points is None else points[tuple(at)], a.signed)

        return gemm.compute(
            p,
            q,
            out,
            parts,
            tile.rows,
            zero=tensors.get("zero"),
            shift=shift,
            columns=tensors.get("columns"),
            requantize=Rescaling.element(tensors),
        )

    return c.te("integer_gemm", define, left, panels, *further.values(), pattern=_pattern(rescaling))


def convolution(c: Context, x: Factor, w: Factor, rescaling: Rescaling | None = None) -> Outputs:
    """The sums [N, O, *out] of the node's convolution, rescaled if asked; zero points have at most one axis."""
    out = c.out_shape
    if len(x.shape) < 3 or 0 in (*x.shape, *w.shape):
        return NotImplemented
    groups, image, kernel = c.integer("group", 1), x.shape[2:], w.shape[2:]
    ones = (1,) * len(kernel)
    strides, dilations = c.integers("strides", ones), c.integers("dilations", ones)
    pads = conv_begin_pads(c, image, kernel, strides, dilations, out[2:])
    if groups == 1 and math.prod(out[2:]) == 1 and kernel == image and not any(pads):
        # One output position that sees the full image: a GEMM with the weights on the streaming side.
        return c.reshape(product(c, _flat(c, x), _flat(c, w), rescaling, transposed=True), out)
    unit = dots.WORDS if w.zero is not None else dots.unit(c.machine, w.known, dtype_of(w.value))
    shape = (x.shape[0], groups, w.shape[1], out[1] // groups, image, kernel)
    window = choose_tile(Window(*shape, strides, dilations, pads, out[2:], unit), c.machine)
    kind = dots.NAMES[unit]
    packed = c.te(f"pack_{kind}", lambda v: conv.pack(v, window), w.value, pattern=OPAQUE)
    x_zero, w_zero = (None if v.zero is None else c.reshape(v.zero, (math.prod(shape_of(v.zero)),)) for v in (x, w))
    every = {"packed": packed if unit == dots.WORDS else None, "x_zero": x_zero, "w_zero": w_zero}
    operands = {name: operand for name, operand in every.items() if operand is not None}

    def prepare(v: te.Tensor, *more: te.Tensor) -> list[te.Tensor]:
        tensors = dict(zip(operands, more, strict=True))
        return integer_lines.prepare(v, tensors.get("packed"), window, tensors.get("x_zero"), tensors.get("w_zero"))

    attributes = {"op_pattern": OPAQUE, SCHEDULED: 1}
    lines = c.definitions.emit(c.builder, f"prepare_{kind}", prepare, (x.value, *operands.values()), attributes)
    further: dict[str, relax.Expr] = {}
    if unit == dots.WORDS:
        lines, packed = (c.builder.emit(relax.TupleGetItem(lines, i)) for i in range(2))
    elif x.signed or x_zero is not None:
        further["sums"] = c.te("filter_sums", conv.filter_sums, w.value, pattern=OPAQUE)
        further |= {} if x_zero is None else {"x_zero": x_zero}
    further |= {} if rescaling is None else rescaling.operands()

    def define(p: te.Tensor, q: te.Tensor, *more: te.Tensor) -> te.Tensor:
        tensors = dict(zip(further, more, strict=True))
        zero = tensors.get("x_zero")
        return conv.compute(
            p,
            q,
            window,
            shift=(lambda: _shift(None if zero is None else zero[0], x.signed)) if "sums" in tensors else None,
            sums_of_filters=tensors.get("sums"),
            requantize=Rescaling.element(tensors),
        )

    y = c.te("integer_conv", define, packed, lines, *further.values(), pattern=_pattern(rescaling))
    if window.joined:
        return c.te("cut_out", lambda v: conv.cut_out(v, window), y, pattern=INJECTIVE)
    return c.reshape(y, out)


def _pattern(rescaling: Rescaling | None) -> int:
    """The fusion pattern: int32 sums fuse with consumers; consumers of bytes are faster as kernels of their own."""
    return EPILOGUE if rescaling is None else OPAQUE


def _flat(c: Context, factor: Factor) -> Factor:
    """The factor with all axes but the first flattened."""
    shape = factor.shape
    return Factor(c.reshape(factor.value, (shape[0], math.prod(shape[1:]))), factor.zero, factor.known)


def _shift(zero: te.TensorSlice | None, signed: bool) -> Expr:
    """The offset of bytes stored as uint8: the zero point, plus 128 for int8."""
    offset = const(0, "int32") if zero is None else zero.astype("int32")
    return offset + 128 if signed else offset


def _points(c: Context, zero: relax.Expr, axes: tuple[int, ...], shape: tuple[int, int], single: int) -> relax.Expr:
    """Zero points along `axes` as `shape`, [1, 1] if there is one.

    They have one axis, the last one, or the rank of the matrix that they belong to, whose axis `single` has one entry.
    """
    extents = list(shape_of(zero))
    if math.prod(extents) == 1:
        return c.reshape(zero, (1, 1))
    if len(extents) > 1:
        del extents[single]
    return c.reshape(c.broadcast(c.reshape(zero, tuple(extents)), axes), shape)
