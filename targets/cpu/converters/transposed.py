"""ConvTranspose: a GEMM of patches of the dilated image, or a GEMM and a transposition where taps never overlap.

    y[o, p] = sum over c, t with p = q * s + t * d - pad of x[c, q] * w[c, o, t]

is the convolution, stride 1, of x with s - 1 zeros between neighbours and the flipped kernel. Where the kernel equals
the stride, each output position has one tap, and the zeros are not worth multiplying.
"""

from __future__ import annotations

import math

from tvm import relax, te

from graphopt.targets.common.converters.base import (
    EPILOGUE,
    INJECTIVE,
    OPAQUE,
    Context,
    Inputs,
    Outputs,
    dtype_of,
    shape_of,
)
from graphopt.targets.common.converters.pads import conv_transpose_begin_pads
from graphopt.targets.cpu.kernels import gemm


def conv_transpose(c: Context, inputs: Inputs) -> Outputs:
    """ConvTranspose of any rank, grouping and dilation; the inferred output shape decides the padding."""
    x, w = inputs[:2]
    bias = inputs[2] if len(inputs) > 2 else None
    batch, channels, *image = shape_of(x)
    _, out_group, *kernel = shape_of(w)
    rank, groups, out = len(kernel), c.integer("group", 1), c.out_shape
    if dtype_of(x) not in ("float32", "float64") or not rank or 0 in (*shape_of(x), *shape_of(w), *out):
        return NotImplemented
    strides, dilations = c.integers("strides", (1,) * rank), c.integers("dilations", (1,) * rank)
    begins = conv_transpose_begin_pads(c, image, kernel, strides, dilations, out[2:])
    taps, depth = math.prod(kernel), channels // groups
    grouped = c.reshape(w, (groups, depth, out_group, taps))
    disjoint = tuple(kernel) == tuple(strides) and not any(begins)
    if disjoint and groups == 1 and tuple(out[2:]) == tuple(e * s for e, s in zip(image, strides, strict=True)):
        return _shuffled(c, x, grouped, bias, kernel)
    flipped = c.te("flip", _flip, grouped, pattern=INJECTIVE)
    a = c.reshape(flipped, (groups, out_group, depth * taps))
    positions = math.prod(out[2:])
    tile = gemm.choose_tile(out_group, positions, depth * taps, c.machine, dtype_of(x))
    pads = [d * (k - 1) - p for d, k, p in zip(dilations, kernel, begins, strict=True)]
    ones = (1,) * rank

    def patches(v: te.Tensor) -> te.Tensor:
        return gemm.pack_patches(v, groups, kernel, ones, pads, dilations, out[2:], tile.width, strides)

    panels = c.te("patches", patches, x, pattern=OPAQUE)
    args = [a, panels, *([] if bias is None else [bias])]
    parts = (1, 1, rank)
    return c.te(
        "gemm", lambda p, q, r=None: gemm.compute(p, q, out, parts, tile.rows, groups, r), *args, pattern=EPILOGUE
    )


def _flip(w: te.Tensor) -> te.Tensor:
    """[G, C, O, K] -> [G, O, C, K] with the taps in reverse."""
    groups, depth, out, taps = (int(d) for d in w.shape)
    return te.compute((groups, out, depth, taps), lambda g, o, i, t: w[g, i, o, taps - 1 - t], name="flip")


def _shuffled(c: Context, x: relax.Expr, w: relax.Expr, bias: relax.Expr | None, kernel: list[int]) -> relax.Expr:
    """One GEMM with rows (output channel, tap), then a transposition that moves each tap to its position."""
    batch, channels, *image = shape_of(x)
    _, depth, out, taps = shape_of(w)
    rank, positions = len(kernel), math.prod(image)
    rows = c.reshape(c.builder.emit(relax.op.permute_dims(w, [0, 2, 3, 1])), (1, out * taps, depth))
    tile = gemm.choose_tile(out * taps, positions, depth, c.machine, dtype_of(x))
    flat = c.reshape(x, (batch, channels, positions))
    panels = c.te("pack", lambda v: gemm.pack(v, tile.width, False), flat, pattern=OPAQUE)
    shape = (batch, out * taps, positions)
    y = c.te("gemm", lambda p, q: gemm.compute(p, q, shape, (1, 1, 1), tile.rows), rows, panels, pattern=EPILOGUE)
    split = c.reshape(y, (batch, out, *kernel, *image))
    order = [
        0,
        1,
        *(axis for pair in zip(range(2 + rank, 2 + 2 * rank), range(2, 2 + rank), strict=True) for axis in pair),
    ]
    placed = c.reshape(c.builder.emit(relax.op.permute_dims(split, order)), c.out_shape)
    if bias is None:
        return placed
    return c.builder.emit(relax.op.add(placed, c.reshape(bias, (1, out, *(1,) * rank))))
