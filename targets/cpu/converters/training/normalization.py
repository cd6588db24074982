"""Batch statistics and the gradient of batch normalization, on planar and on blocked tensors."""

from __future__ import annotations

import math
from collections.abc import Callable

from tvm import relax, te, tirx
from tvm.ir import Expr

from graphopt.targets.common.converters.base import OPAQUE, Context, Inputs, Outputs, dtype_of, shape_of
from graphopt.targets.common.converters.training.normalization import from_sums
from graphopt.targets.common.kernels.blocks import const
from graphopt.targets.cpu.kernels.training import channel_sums

Value = Callable[..., Expr]
"""(operands, term number, row n * C + c, position p) of planar tensors, or (..., n, cb, y, x, lane) of blocked ones."""


def batch_statistics(c: Context, inputs: Inputs) -> Outputs:
    """BatchStatistics in two passes: the mean, then the squared distances from it."""
    x = inputs[0]
    shape = shape_of(x)
    if dtype_of(x) not in ("float32", "float64") or 0 in shape:
        return NotImplemented
    n, channels, plane = shape[0], shape[1], math.prod(shape[2:])
    flat = c.reshape(x, (n * channels, plane))

    def mean_of(rows: relax.Expr) -> relax.Expr:
        return c.te("over_images", lambda v: _mean(channel_sums.over_images(v, n), n * plane, x), rows, pattern=OPAQUE)

    lanes, dtype = c.machine.lanes(dtype_of(x)), dtype_of(x)
    rows = c.te(
        "channel_sums",
        lambda v: channel_sums.rows((n, channels, plane), dtype, 1, lambda _, i, p: v[i, p], lanes),
        flat,
        pattern=OPAQUE,
    )
    mean = mean_of(rows)

    def squares(v: te.Tensor, center: te.Tensor) -> te.Tensor:
        def term(_: int, i: Expr, p: Expr) -> Expr:
            distance = v[i, p] - center[tirx.floormod(i, channels)]
            return distance * distance

        return channel_sums.rows((n, channels, plane), dtype, 1, term, lanes)

    return [mean, mean_of(c.te("channel_squares", squares, flat, mean, pattern=OPAQUE))]


def _mean(sums: te.Tensor, count: int, x: relax.Expr) -> te.Tensor:
    """sums[1, C] / count in the dtype of x."""
    dtype = dtype_of(x)
    divisor = const(count, "float64")
    return te.compute((sums.shape[1],), lambda i: (sums[0, i] / divisor).astype(dtype), name="mean")


def batch_statistics_blocked(c: Context, inputs: Inputs) -> Outputs:
    """BatchStatisticsBlocked, likewise."""
    x = inputs[0]
    shape, dtype, channels = shape_of(x), dtype_of(x), c.integer("channels")
    n, cb, h, w, b = shape
    count = const(n * h * w, "float64")

    def mean_of(sums: relax.Expr) -> relax.Expr:
        def define(v: te.Tensor) -> te.Tensor:
            total = channel_sums.over_shares(v)
            return te.compute((cb, b), lambda o, lane: (total[0, o, lane] / count).astype(dtype), name="mean")

        return c.te("over_shares", define, sums, pattern=OPAQUE)

    mean = mean_of(
        c.te(
            "channel_sums",
            lambda v: channel_sums.blocked(shape, 1, lambda _, *at: v[at]),
            x,
            pattern=OPAQUE,
        )
    )

    def squares(v: te.Tensor, center: te.Tensor) -> te.Tensor:
        def term(_: int, *at: Expr) -> Expr:
            distance = v[at] - center[at[1], at[4]]
            return distance * distance

        return channel_sums.blocked(shape, 1, term)

    variance = mean_of(c.te("channel_squares", squares, x, mean, pattern=OPAQUE))
    return [_first(c, each, channels) for each in (mean, variance)]


def channel_sums_blocked(c: Context, inputs: Inputs) -> Outputs:
    """ChannelSumsBlocked: the gradient of a bias."""
    x, channels = inputs[0], c.integer("channels")
    shape, dtype = shape_of(x), dtype_of(x)
    parts = c.te("channel_sums", lambda v: channel_sums.blocked(shape, 1, lambda _, *at: v[at]), x, pattern=OPAQUE)

    def define(v: te.Tensor) -> te.Tensor:
        total = channel_sums.over_shares(v)
        b = shape[4]
        return te.compute(
            (channels,), lambda i: total[0, tirx.floordiv(i, b), tirx.floormod(i, b)].astype(dtype), name="sums"
        )

    return c.te("over_shares", define, parts, pattern=OPAQUE)


def _first(c: Context, lanes: relax.Expr, channels: int) -> relax.Expr:
    """The first channels of [CB, b]."""
    flat = c.reshape(lanes, (math.prod(shape_of(lanes)),))
    if shape_of(flat) == (channels,):
        return flat
    return c.te("first", lambda v: te.compute((channels,), lambda i: v[i], name="first"), flat, pattern=OPAQUE)


def batch_norm_gradient(c: Context, inputs: Inputs) -> Outputs:
    """BatchNormalizationGradient: both sums in one pass, then dX = a dY + b (X - mean) + d for each channel."""
    dy, x, scale, mean, inv_std = inputs
    shape, dtype = shape_of(x), dtype_of(x)
    if dtype not in ("float32", "float64") or 0 in shape or any(dtype_of(each) != dtype for each in inputs):
        return NotImplemented
    n, channels, plane = shape[0], shape[1], math.prod(shape[2:])
    lanes = c.machine.lanes(dtype)

    def summed(g: te.Tensor, v: te.Tensor, m: te.Tensor, s: te.Tensor) -> te.Tensor:
        def term(k: int, i: Expr, p: Expr) -> Expr:
            at = tirx.floormod(i, channels)
            return g[i, p] if k == 0 else g[i, p] * ((v[i, p] - m[at]) * s[at])

        return channel_sums.rows((n, channels, plane), dtype, 2, term, lanes)

    flat = (n * channels, plane)
    rows = c.te("channel_sums", summed, c.reshape(dy, flat), c.reshape(x, flat), mean, inv_std, pattern=OPAQUE)

    def rounded(v: te.Tensor) -> te.Tensor:
        sums = channel_sums.over_images(v, n)
        return te.compute((2, channels), lambda k, i: sums[k, i].astype(dtype), name="rounded")

    sums = c.te("over_images", rounded, rows, pattern=OPAQUE)
    return from_sums(c, [dy, x, scale, mean, inv_std], sums, n * plane, lambda at: at[1])


def batch_norm_gradient_blocked(c: Context, inputs: Inputs) -> Outputs:
    """BatchNormalizationGradientBlocked, likewise; padded lanes of dX are zero."""
    dy, x, scale, mean, inv_std = inputs
    shape, dtype, channels = shape_of(x), dtype_of(x), shape_of(scale)[0]
    n, cb, h, w, b = shape
    if dtype not in ("float32", "float64") or 0 in shape or any(dtype_of(each) != dtype for each in inputs):
        return NotImplemented
    scale, mean, inv_std = (_filled(c, each, cb * b) for each in (scale, mean, inv_std))

    def summed(g: te.Tensor, v: te.Tensor, m: te.Tensor, s: te.Tensor) -> te.Tensor:
        def term(k: int, *at: Expr) -> Expr:
            i = at[1] * b + at[4]
            return g[at] if k == 0 else g[at] * ((v[at] - m[i]) * s[i])

        return channel_sums.blocked(shape, 2, term)

    parts = c.te("channel_sums", summed, dy, x, mean, inv_std, pattern=OPAQUE)

    def rounded(v: te.Tensor) -> te.Tensor:
        sums = channel_sums.over_shares(v)
        return te.compute((2, cb, b), lambda k, o, lane: sums[k, o, lane].astype(dtype), name="rounded")

    sums = c.reshape(c.te("over_shares", rounded, parts, pattern=OPAQUE), (2, cb * b))
    operands = [dy, x, scale, mean, inv_std]
    dx, *others = from_sums(c, operands, sums, n * h * w, lambda at: at[1] * b + at[4])
    return [dx, *(_first(c, each, channels) for each in others)]


def _filled(c: Context, vector: relax.Expr, size: int) -> relax.Expr:
    """`vector` with zeros appended up to `size`."""
    given = shape_of(vector)[0]
    if given == size:
        return vector

    def define(v: te.Tensor) -> te.Tensor:
        return te.compute((size,), lambda i: tirx.if_then_else(i < given, v[i], const(0, v.dtype)), name="filled")

    return c.te("filled", define, vector, pattern=OPAQUE)
