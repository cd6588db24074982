"""ConvWeightGradient: a GEMM of dY and patches over the positions of all images.

    dw[g, m, j] = sum over (n, p) of dy[n, g, m, p] * patches[n, g, p, j]     j = (channel, tap)

Patches are computed where they are read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tvm import te, tirx
from tvm.ir import Expr

from graphopt.targets.common.converters.base import (
    FLOATS,
    HALF_DTYPES,
    OPAQUE,
    Context,
    Inputs,
    Outputs,
    dtype_of,
    shape_of,
)
from graphopt.targets.common.kernels.blocks import const, dims
from graphopt.targets.gpu.converters.blocked import accumulator
from graphopt.targets.gpu.fusion import epilogue
from graphopt.targets.gpu.kernels.gemm import product
from graphopt.targets.gpu.kernels.gemm.axes import Axes


@dataclass(frozen=True, slots=True)
class Taps:
    """What the taps of a kernel read of x[n, c, *image] at the positions of `out`; zeros outside the image."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int, ...]  # pads before each axis
    out: tuple[int, ...]

    def element(
        self, x: te.Tensor, n: Expr, channel: Expr, tap: Sequence[Expr], place: Sequence[Expr]
    ) -> Expr | te.TensorSlice:
        """For an image, a channel, a tap and a position."""
        image = dims(x)[2:]
        index: list[Expr] = []
        inside: list[Expr] = []
        for axis, (t, p) in enumerate(zip(tap, place, strict=True)):
            here = p * self.strides[axis] + t * self.dilations[axis] - self.begins[axis]
            last = (self.out[axis] - 1) * self.strides[axis] + (self.kernel[axis] - 1) * self.dilations[axis]
            inside += [here >= 0] if self.begins[axis] > 0 else []
            inside += [here < image[axis]] if last - self.begins[axis] >= image[axis] else []
            index.append(here)
        value = x[(n, channel, *index)]
        return tirx.if_then_else(tirx.all(*inside), value, const(0, x.dtype)) if inside else value


def conv_weight_gradient(c: Context, inputs: Inputs) -> Outputs:
    """ConvWeightGradient of any rank and grouping; with one output channel in a group, sums."""
    x, dy = inputs
    dtype, kernel = dtype_of(x), c.integers("kernel_shape")
    if dtype not in (*FLOATS, *HALF_DTYPES) or dtype_of(dy) != dtype or 0 in (*shape_of(x), *shape_of(dy)):
        return NotImplemented
    groups, ones = c.integer("group", 1), (1,) * len(kernel)
    out = shape_of(dy)[2:]
    begins = c.integers("pads", (0,) * 2 * len(kernel))[: len(kernel)]
    taps = Taps(kernel, c.integers("strides", ones), c.integers("dilations", ones), begins, out)
    if c.out_shape[0] == groups:
        return c.te("conv_weight_gradient", lambda v, g: _sums(v, g, c.out_shape, taps), x, dy, pattern=epilogue(c))
    flat = c.reshape(dy, (*shape_of(dy)[:2], math.prod(out)))
    return c.te(
        "conv_weight_gradient",
        lambda v, g: _product(v, g, c.out_shape, taps, groups, c.tf32, c.tile),
        x,
        flat,
        pattern=OPAQUE if math.prod(c.out_shape) == 1 else epilogue(c),
    )


def _product(
    x: te.Tensor, dy: te.Tensor, shape: tuple[int, ...], taps: Taps, groups: int, tf32: bool, tile: str | None
) -> te.Tensor:
    """dw of `shape` [O, C / groups, *kernel], of dy[N, O, P]."""
    outputs, deep = shape[0] // groups, shape[1]
    images, _, positions = dims(dy)

    def right(b: Expr, k: Expr, j: Expr) -> Expr | te.TensorSlice:
        channel, *tap = _unflattened(j, (deep, *taps.kernel))
        image, *place = _unflattened(k, (images, *taps.out))
        return taps.element(x, image, b * deep + channel, tap, place)

    return product.compute(
        lambda b, m, k: dy[tirx.floordiv(k, positions), b * outputs + m, tirx.floormod(k, positions)],
        right,
        (groups, outputs, math.prod(shape[1:]), images * positions),
        Axes.plain(shape, (0, 1, len(shape) - 1), outputs, groups),
        str(x.dtype),
        accumulate=accumulator(str(x.dtype)),
        tf32=tf32,
        tile=tile,
    )


def _sums(x: te.Tensor, dy: te.Tensor, shape: tuple[int, ...], taps: Taps) -> te.Tensor:
    """dw of `shape` [O, C / O, *kernel]: an output channel sees the channels of its own group."""
    kept, deep = accumulator(str(x.dtype)), shape[1]
    rn = te.reduce_axis((0, dims(dy)[0]), "n")
    place = [te.reduce_axis((0, extent), f"p{axis}") for axis, extent in enumerate(taps.out)]

    def element(o: Expr, channel: Expr, *tap: Expr) -> Expr:
        value = taps.element(x, rn, o * deep + channel, tap, place)
        return te.sum(dy[(rn, o, *place)].astype(kept) * value.astype(kept), axis=[rn, *place])

    sums = te.compute(shape, element, name="sums")
    return te.compute(shape, lambda *i: sums[i].astype(x.dtype), name="finish")


def _unflattened(flat: Expr, extents: Sequence[int]) -> list[Expr]:
    """The digits of a number, the outermost first."""
    digits: list[Expr] = []
    for extent in reversed(extents[1:]):
        digits.insert(0, tirx.floormod(flat, extent))
        flat = tirx.floordiv(flat, extent)
    return [flat, *digits]
