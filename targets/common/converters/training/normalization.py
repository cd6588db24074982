"""The gradient of batch normalization from its two sums for each channel."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import relax, te, tirx
from tvm.ir import Expr

from graphopt.targets.common.converters.base import BROADCAST, OPAQUE, Context, dtype_of, shape_of
from graphopt.targets.common.kernels.blocks import const


def from_sums(
    c: Context,
    inputs: Sequence[relax.Expr],
    sums: relax.Expr,
    count: int,
    channel: Callable[[Sequence[Expr]], Expr],
) -> list[relax.Expr]:
    """[dX, dScale, dB] where dX = a dY + b (X - mean) + d for each channel.

    Args:
        c: the context.
        inputs: dY, X, and scale, mean and inv_std [C].
        sums: [2, C], dB = sum dY and dScale = sum dY (X - mean) inv_std.
        count: m, the elements of a channel.
        channel: the channel of an element of X.
    """
    dy, x, scale, mean, inv_std = inputs
    factors = _factors(c, sums, scale, inv_std, count)

    def finish(g: te.Tensor, v: te.Tensor, m: te.Tensor, f: te.Tensor) -> te.Tensor:
        def element(*at: Expr) -> Expr:
            i = channel(at)
            return f[0, i] * g[at] + f[1, i] * (v[at] - m[i]) + f[2, i]

        return te.compute(shape_of(x), element, name="finish")

    dx = c.te("batch_norm_gradient", finish, dy, x, mean, factors, pattern=BROADCAST)
    return [dx, row(c, sums, 1), row(c, sums, 0)]


def _factors(c: Context, sums: relax.Expr, scale: relax.Expr, inv_std: relax.Expr, count: int) -> relax.Expr:
    """(a, b, d)[3, C]: a = scale inv_std, b = -a inv_std dScale / m, d = -a dB / m."""
    channels, dtype = shape_of(scale)[0], dtype_of(scale)
    share = const(-1.0 / count, dtype)

    def define(s: te.Tensor, w: te.Tensor, inverse: te.Tensor) -> te.Tensor:
        def element(k: Expr, i: Expr) -> Expr:
            a = w[i] * inverse[i]
            return tirx.Select(
                k == 0, a, tirx.Select(k == 1, a * inverse[i] * (s[1, i] * share), a * (s[0, i] * share))
            )

        return te.compute((3, channels), element, name="factors")

    return c.te("batch_norm_factors", define, sums, scale, inv_std, pattern=OPAQUE)


def row(c: Context, rows: relax.Expr, number: int) -> relax.Expr:
    """Row `number` of a matrix."""
    width = shape_of(rows)[1]
    return c.te("row", lambda v: te.compute((width,), lambda i: v[number, i], name="row"), rows, pattern=OPAQUE)
