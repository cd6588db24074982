"""Convolutions on blocked tensors as GEMMs: rows m are the pixels of all images, columns n and depth k channels.

    y[n, co, h, w, lane]    m = (n, h, w)    n = (co, lane)    k = (input block, tap, input lane)

The b elements of k that share a tap are contiguous in memory, and either all inside the image or all outside it.
The taps of a block come before the next block: what they read is mostly the same.
"""

from __future__ import annotations

import math

from tvm import te, tirx
from tvm.ir import Expr

from graphopt.targets.common.kernels.blocks import const, dims
from graphopt.targets.gpu.kernels.gemm import product
from graphopt.targets.gpu.kernels.gemm.axes import Axes
from graphopt.targets.gpu.kernels.window import Window


def compute(
    x: te.Tensor,
    w: te.Tensor,
    bias: te.Tensor,
    seen: Window,
    groups: int,
    out: tuple[int, ...],
    accumulate: str,
    tf32: bool = False,
    tile: str | None = None,
) -> te.Tensor:
    """y of shape `out`, of x[N, CI, H, W, bi], w[CO, CI / groups * taps * bi, b] (k as above) and bias[CO, b].

    The weights may also lie along k: w[CO * b, CI / groups * taps * bi].
    """
    _, _, height, width, lanes = dims(x)
    depth, b = dims(w)[1], out[4]
    along_depth = len(dims(w)) == 2
    taps, blocks, images = math.prod(seen.kernel), out[1] // groups, out[0]
    deep = depth // (taps * lanes)

    def patch(g: Expr, m: Expr, k: tirx.IterVar) -> Expr | te.TensorSlice:
        lane, rest = tirx.floormod(k, lanes), tirx.floordiv(k, lanes)
        tap, block = tirx.floormod(rest, taps), g * deep + tirx.floordiv(rest, taps)
        place = tirx.floormod(tirx.floordiv(m, out[3]), out[2]), tirx.floormod(m, out[3])
        at = tirx.floordiv(tap, seen.kernel[1]), tirx.floormod(tap, seen.kernel[1])
        (y, z), inside = seen.at(place, at, (height, width), (out[2], out[3]))
        value = x[tirx.floordiv(m, out[2] * out[3]), block, y, z, lane]
        return value if inside is None else tirx.if_then_else(inside, value, const(0, x.dtype))

    def weight(g: Expr, k: tirx.IterVar, n: Expr) -> te.TensorSlice:
        return (
            w[g * (blocks * b) + n, k] if along_depth else w[g * blocks + tirx.floordiv(n, b), k, tirx.floormod(n, b)]
        )

    image, channel, rows, columns = ("m", images), (("b", groups), ("n", blocks)), ("m", out[2]), ("m", out[3])
    return product.compute(
        patch,
        weight,
        (groups, images * out[2] * out[3], blocks * b, depth),
        Axes(((image,), channel, (rows,), (columns,), (("n", b),))),
        str(x.dtype),
        lambda _, block, y, z, lane: bias[block, lane],
        accumulate,
        tf32,
        tile,
    )
