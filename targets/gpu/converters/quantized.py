"""Quantized GEMMs and convolutions on GPUs: the same sums in int32, one thread for each."""

from __future__ import annotations

import math

from tvm import relax, te, tirx
from tvm.ir import Expr

from graphopt.targets.common.converters.base import BROADCAST, EPILOGUE, Context, Outputs, shape_of
from graphopt.targets.common.converters.pads import conv_begin_pads
from graphopt.targets.common.converters.quantized import Factor, Rescaling, converters
from graphopt.targets.common.kernels.blocks import const, dims


def product(c: Context, a: Factor, b: Factor, rescaling: Rescaling | None = None) -> Outputs:
    """The sums [..., M, N] of a[..., M, K] and b[..., K, N], or what they become."""
    if 0 in (*a.shape, *b.shape):
        return NotImplemented
    left = c.reshape(_centred(c, a, -1), (1, *a.shape)[-max(2, len(a.shape)) :])
    right = c.reshape(_centred(c, b, -2), (*b.shape, 1)[: max(2, len(b.shape))])
    return _rescaled(c, c.builder.emit(relax.op.matmul(left, right)), rescaling, -1)


def _centred(c: Context, factor: Factor, single: int) -> relax.Expr:
    """A matrix less its zero point, which has one entry along the axis `single`, in int32."""
    wide = c.builder.emit(relax.op.astype(factor.value, "int32"))
    if factor.zero is None:
        return wide
    shape = shape_of(factor.zero)
    if math.prod(shape) == 1:
        shape = (1,)
    elif len(shape) == 1 and single == -1:
        shape = (*shape, 1)
    zero = c.builder.emit(relax.op.astype(c.reshape(factor.zero, shape), "int32"))
    return c.builder.emit(relax.op.subtract(wide, zero))


def convolution(c: Context, x: Factor, w: Factor, rescaling: Rescaling | None = None) -> Outputs:
    """The sums [N, O, *out] of the node's convolution, or what they become."""
    if len(x.shape) < 3 or 0 in (*x.shape, *w.shape):
        return NotImplemented
    out, image, kernel, groups = c.out_shape, x.shape[2:], w.shape[2:], c.integer("group", 1)
    ones = (1,) * len(kernel)
    strides, dilations = c.integers("strides", ones), c.integers("dilations", ones)
    pads = conv_begin_pads(c, image, kernel, strides, dilations, out[2:])
    filters, deep = out[1] // groups, w.shape[1]
    zeros = {"x": x.zero, "w": w.zero}
    zeros = {name: c.reshape(v, (math.prod(shape_of(v)),)) for name, v in zeros.items() if v is not None}

    def define(v: te.Tensor, u: te.Tensor, *more: te.Tensor) -> te.Tensor:
        points = dict(zip(zeros, more, strict=True))
        r = te.reduce_axis((0, deep), "k")
        taps = [te.reduce_axis((0, extent), "tap") for extent in kernel]

        def element(n: Expr, o: Expr, *place: Expr) -> Expr:
            spot = [
                at * stride + tap * dilation - pad
                for at, stride, tap, dilation, pad in zip(place, strides, taps, dilations, pads, strict=True)
            ]
            inside = [bound for at, extent in zip(spot, image, strict=True) for bound in (at >= 0, at < extent)]
            left = _less(v[(n, tirx.floordiv(o, filters) * deep + r, *spot)], points.get("x"), o)
            right = _less(u[(o, r, *taps)], points.get("w"), o)
            return te.sum(tirx.if_then_else(tirx.all(*inside), left * right, const(0, "int32")), axis=[r, *taps])

        return te.compute(tuple(out), element, name="conv")

    total = c.te("integer_conv", define, x.value, w.value, *zeros.values(), pattern=EPILOGUE)
    return _rescaled(c, total, rescaling, 1)


def _less(value: te.TensorSlice, zero: te.Tensor | None, channel: Expr) -> Expr:
    wide = value.astype("int32")
    return wide if zero is None else wide - zero[0 if dims(zero) == [1] else channel].astype("int32")


def _rescaled(c: Context, total: relax.Expr, rescaling: Rescaling | None, axis: int) -> relax.Expr:
    """What the sums become, whose channels stand along `axis`."""
    if rescaling is None:
        return total
    operands = rescaling.operands()

    def define(v: te.Tensor, *more: te.Tensor) -> te.Tensor:
        function = Rescaling.element(dict(zip(operands, more, strict=True)))
        assert function is not None
        return te.compute(v.shape, lambda *i: function(v(*i), i[axis]), name="requantize")

    return c.te("requantize", define, total, *operands.values(), pattern=BROADCAST)


OWN = converters(product, convolution)
