"""Conv and ConvTranspose of any rank on GPUs: weights times patches, which are computed where they are read."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from tvm import relax, te, tirx
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
from graphopt.targets.common.converters.pads import conv_begin_pads, conv_transpose_begin_pads
from graphopt.targets.common.kernels.blocks import const
from graphopt.targets.gpu.converters.blocked import accumulator
from graphopt.targets.gpu.fusion import epilogue
from graphopt.targets.gpu.kernels.gemm import product
from graphopt.targets.gpu.kernels.gemm.axes import Axes

NARROW = 64
"""Products that one thread sums by itself, where a group has one output channel."""


@dataclass(frozen=True, slots=True)
class Patches:
    """What each output position of a convolution sees of x[n, c, *image], of which some may lie outside: zeros.

    `spread` s reads an image with s - 1 zeros between neighbours, as a transposed convolution does.
    """

    groups: int
    deep: int  # channels of a group
    image: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]  # before each axis
    out: tuple[int, ...]
    spread: tuple[int, ...]

    def element(self, x: te.Tensor, b: Expr, k: tirx.IterVar, p: Expr) -> Expr | te.TensorSlice:
        """For image and group `b`, tap and channel `k` (channels fastest: a slice mostly has one tap), position `p`."""
        index: list[Expr] = []
        conditions: list[Expr | tirx.expr.EqualOp] = []
        tap, at = tirx.floordiv(k, self.deep), p
        for axis in reversed(range(len(self.kernel))):
            step = tirx.floormod(tap, self.kernel[axis]) if axis else tap
            place = tirx.floormod(at, self.out[axis]) if axis else at
            tap, at = tirx.floordiv(tap, self.kernel[axis]), tirx.floordiv(at, self.out[axis])
            here = place * self.strides[axis] + step * self.dilations[axis] - self.pads[axis]
            span = (self.image[axis] - 1) * self.spread[axis] + 1
            last = (self.out[axis] - 1) * self.strides[axis] + (self.kernel[axis] - 1) * self.dilations[axis]
            if self.pads[axis] > 0:
                conditions.append(here >= 0)
            if last - self.pads[axis] >= span:
                conditions.append(here < span)
            if self.spread[axis] > 1:
                conditions.append(tirx.floormod(here, self.spread[axis]) == 0)
            index.insert(0, tirx.floordiv(here, self.spread[axis]) if self.spread[axis] > 1 else here)
        channel = tirx.floormod(b, self.groups) * self.deep + tirx.floormod(k, self.deep)
        value = x[(tirx.floordiv(b, self.groups), channel, *index)]
        return tirx.if_then_else(tirx.all(*conditions), value, const(0, x.dtype)) if conditions else value

    def tap(self, k: Expr | tirx.IterVar) -> tuple[Expr, list[Expr]]:
        """The channel and the tap of `k`."""
        rest = tirx.floordiv(k, self.deep)
        index: list[Expr] = []
        for extent in reversed(self.kernel):
            index.insert(0, tirx.floormod(rest, extent))
            rest = tirx.floordiv(rest, extent)
        return tirx.floormod(k, self.deep), index

    @property
    def depth(self) -> int:
        """Values that an output position sees."""
        return self.deep * math.prod(self.kernel)


def conv(c: Context, inputs: Inputs) -> Outputs:
    """Conv of any rank and grouping: weights times patches, which are computed where they are read."""
    x, w = inputs[:2]
    bias = inputs[2] if len(inputs) > 2 else None
    if dtype_of(x) not in (*FLOATS, *HALF_DTYPES) or 0 in (*shape_of(x), *shape_of(w)) or len(shape_of(x)) < 3:
        return NotImplemented
    groups, out = c.integer("group", 1), c.out_shape
    image, kernel = shape_of(x)[2:], shape_of(w)[2:]
    ones = (1,) * len(kernel)
    strides, dilations = c.integers("strides", ones), c.integers("dilations", ones)
    pads = conv_begin_pads(c, image, kernel, strides, dilations, out[2:])
    deep, per_group = shape_of(w)[1], out[1] // groups
    seen = Patches(groups, deep, image, kernel, strides, dilations, pads, out[2:], ones)

    def weight(v: te.Tensor, g: Expr, k: Expr, m: Expr) -> te.TensorSlice:
        channel, tap = seen.tap(k)
        return v[(g * per_group + m, channel, *tap)]

    if seen.depth <= NARROW and per_group == 1:
        return _narrow(c, x, w, bias, seen)
    return _convolution(c, x, w, bias, seen, weight)


def conv_im2col(c: Context, inputs: Inputs) -> Outputs:
    """Conv2dIm2col, whose weights are a matrix [O, C * taps]: patches are computed where they are read here too."""
    x, w, bias = inputs
    return conv(c, [x, c.reshape(w, (shape_of(w)[0], shape_of(x)[1], *c.integers("kernel_shape"))), bias])


def conv_transpose(c: Context, inputs: Inputs) -> Outputs:
    """ConvTranspose: the convolution of the image with zeros between its elements and the flipped kernel."""
    x, w = inputs[:2]
    bias = inputs[2] if len(inputs) > 2 else None
    groups, out = c.integer("group", 1), c.out_shape
    image, kernel = shape_of(x)[2:], shape_of(w)[2:]
    if dtype_of(x) not in (*FLOATS, *HALF_DTYPES) or not kernel or 0 in (*shape_of(x), *shape_of(w), *out):
        return NotImplemented
    ones = (1,) * len(kernel)
    strides, dilations = c.integers("strides", ones), c.integers("dilations", ones)
    begins = conv_transpose_begin_pads(c, list(image), list(kernel), strides, dilations, out[2:])
    deep = shape_of(x)[1] // groups
    pads = tuple(d * (k - 1) - p for d, k, p in zip(dilations, kernel, begins, strict=True))
    seen = Patches(groups, deep, image, kernel, ones, dilations, pads, out[2:], strides)

    def weight(v: te.Tensor, g: Expr, k: Expr, m: Expr) -> te.TensorSlice:
        channel, tap = seen.tap(k)
        flipped = [extent - 1 - t for extent, t in zip(kernel, tap, strict=True)]
        return v[(g * deep + channel, m, *flipped)]

    return _convolution(c, x, w, bias, seen, weight)


def _convolution(
    c: Context,
    x: relax.Expr,
    w: relax.Expr,
    bias: relax.Expr | None,
    seen: Patches,
    weight: Callable[[te.Tensor, Expr, Expr, Expr], te.TensorSlice],
) -> relax.Expr:
    out, dtype, groups = c.out_shape, dtype_of(x), seen.groups
    per_group, positions = out[1] // groups, math.prod(out[2:])
    # [groups, k, m]: neighbouring threads read neighbouring output channels; constant, so it is done while compiling
    packed = c.te(
        "pack",
        lambda v: te.compute((groups, seen.depth, per_group), lambda g, k, m: weight(v, g, k, m), name="pack"),
        w,
        pattern=OPAQUE,
    )

    def define(v: te.Tensor, u: te.Tensor, s: te.Tensor | None = None) -> te.Tensor:
        return product.compute(
            lambda b, m, k: u[tirx.floormod(b, groups), k, m],
            lambda b, k, p: seen.element(v, b, k, p),
            (out[0] * groups, per_group, positions, seen.depth),
            Axes.plain(out, (1, 1, len(seen.kernel)), per_group, groups),
            dtype,
            None if s is None else lambda n, channel, *place: s[channel],
            accumulator(dtype),
            c.tf32,
            c.tile,
        )

    return c.te("conv", define, x, packed, *([] if bias is None else [bias]), pattern=epilogue(c))


def _narrow(c: Context, x: relax.Expr, w: relax.Expr, bias: relax.Expr | None, seen: Patches) -> relax.Expr:
    """One output channel for each group: a thread sums its few products by itself."""
    out, dtype = c.out_shape, dtype_of(x)
    kept = accumulator(dtype)

    def define(v: te.Tensor, u: te.Tensor, s: te.Tensor | None = None) -> te.Tensor:
        r = te.reduce_axis((0, seen.depth), "k")

        def element(n: Expr, channel: Expr, *place: Expr) -> Expr:
            flat: Expr | int = 0
            for at, extent in zip(place, out[2:], strict=True):
                flat = flat * extent + at
            deep, tap = seen.tap(r)
            value = seen.element(v, n * seen.groups + channel, r, flat)
            return te.sum(value.astype(kept) * u[(channel, deep, *tap)].astype(kept), axis=[r])

        sums = te.compute(tuple(out), element, name="narrow")

        def finish(n: Expr, channel: Expr, *place: Expr) -> Expr:
            total = sums[(n, channel, *place)]
            return (total if s is None else total + s[channel].astype(kept)).astype(dtype)

        return te.compute(tuple(out), finish, name="finish")

    return c.te("depthwise", define, x, w, *([] if bias is None else [bias]), pattern=epilogue(c))
