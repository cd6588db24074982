"""Products with block-sparse weights: only the blocks that hold a weight other than zero are stored and multiplied.

`blocks` [B, bk, bn] hold bk inputs x bn outputs each. `rows` [B], ascending, names the group of bn outputs that a block
adds to, `starts` [B] its first input. A block's inputs are neighbours, at any offset; no two blocks of a group share
one. The body makes the matrix dense again. It defines the result for finite inputs: a kernel does not multiply what is
in no block, so that NaN and infinities spread no further than the blocks that read them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

ROUNDING = 5
ROUNDED = 1024
"""Numbers of blocks from `ROUNDED` on have `ROUNDING` significant bits behind the first."""

_MATRIX = """
    zero = Constant <value_int = 0>()
    one = Constant <value_int = 1>()
    first = Constant <value_ints = [0]>()
    one_vector = Constant <value_ints = [1]>()
    last_axis = Constant <value_ints = [-1]>()
    outputs = Constant <value_ints: ints = @outputs>()
    width = Shape <start = 2, end = 3>(blocks)
    less = Sub(width, one_vector)
    rounded = Add(outputs, less)
    groups = Div(rounded, width)
    block_depth = Shape <start = 1, end = 2>(blocks)
    block_depth_scalar = Squeeze(block_depth, first)

    steps = Range(zero, block_depth_scalar, one)
    starts_wide = Cast <to = 7>(starts)
    starts_column = Unsqueeze(starts_wide, last_axis)
    inputs = Add(starts_column, steps)
    inputs_shape = Shape(inputs)
    rows_wide = Cast <to = 7>(rows)
    rows_column = Unsqueeze(rows_wide, last_axis)
    groups_of_inputs = Expand(rows_column, inputs_shape)
    inputs_last = Unsqueeze(inputs, last_axis)
    groups_last = Unsqueeze(groups_of_inputs, last_axis)
    places = Concat <axis = -1>(inputs_last, groups_last)

    split_shape = Concat <axis = 0>(depth, groups, width)
    zero_like = CastLike(zero, blocks)
    zeros = Expand(zero_like, split_shape)
    split = ScatterND(zeros, places, blocks)
    columns = Mul(groups, width)
    padded_shape = Concat <axis = 0>(depth, columns)
    padded = Reshape(split, padded_shape)
"""
"""`padded` [depth, groups * width]: the dense matrix, with zeros behind the last output."""

BLOCK_SPARSE_MATMUL = f"""
BlockSparseMatMul <outputs>(x, blocks, rows, starts) => (y)
{{
    depth = Shape <start = -1>(x)
    {_MATRIX}
    matrix = Slice(padded, first, outputs, one_vector)
    y = MatMul(x, matrix)
}}
"""
"""`outputs` holds one number, N; y is [..., N]."""

BLOCK_SPARSE_CONV = f"""
BlockSparseConv <outputs, kernel_shape, strides, pads, dilations>(x, blocks, rows, starts, bias) => (y)
{{
    infer = Constant <value_ints = [-1]>()
    kernel = Constant <value_ints: ints = @kernel_shape>()
    batch = Shape <start = 0, end = 1>(x)
    plane = Shape <start = 2, end = 4>(x)
    in_blocks = Shape <start = 1, end = 2>(x)
    in_lanes = Shape <start = 4, end = 5>(x)
    in_channels = Mul(in_blocks, in_lanes)
    taps = ReduceProd <keepdims = 1>(kernel)
    depth = Mul(in_channels, taps)
    {_MATRIX}
    by_output = Transpose <perm = [1, 0]>(padded)
    bias_planar = Reshape(bias, infer)
    out_channels = Shape(bias_planar)
    kept = Slice(by_output, first, out_channels, first)
    split_w_shape = Concat <axis = 0>(out_channels, infer, kernel, block_depth)
    split_w = Reshape(kept, split_w_shape)
    w_by_channel = Transpose <perm = [0, 1, 4, 2, 3]>(split_w)
    w_shape = Concat <axis = 0>(out_channels, in_channels, kernel)
    w = Reshape(w_by_channel, w_shape)

    x_split = Transpose <perm = [0, 1, 4, 2, 3]>(x)
    x_shape = Concat <axis = 0>(batch, in_channels, plane)
    x_planar = Reshape(x_split, x_shape)
    planar = Conv <strides: ints = @strides, pads: ints = @pads, dilations: ints = @dilations>
             (x_planar, w, bias_planar)

    out_plane = Shape <start = 2, end = 4>(planar)
    out_blocks = Shape(bias)
    y_shape = Concat <axis = 0>(batch, out_blocks, out_plane)
    y_split = Reshape(planar, y_shape)
    y = Transpose <perm = [0, 1, 3, 4, 2]>(y_split)
}}
"""
"""On blocked tensors: x [N, C / b, H, W, b], bias [O / c, c], y [N, O / c, OH, OW, c]; bn is a multiple of c, C of bk.

An input of the matrix is one channel at one tap of the window; bk neighbours are channels of one tap:
((channel / bk * kh + row) * kw + column) * bk + channel % bk.
"""


def pack_blocks(
    weight: NDArray[Any], depth: int, width: int
) -> tuple[NDArray[Any], NDArray[np.int32], NDArray[np.int32]]:
    """The operands blocks [B, depth, width], rows [B] and starts [B] of `weight` [K, N], whose K `depth` divides.

    A few blocks of zeros make B a round number, so that layers with nearly as many blocks share their kernel.
    """
    k, n = weight.shape
    steps, groups = k // depth, -(-n // width)
    padded = np.zeros((k, groups * width), weight.dtype)
    padded[:, :n] = weight
    tiles = padded.reshape(steps, depth, groups, width).transpose(2, 0, 1, 3)
    kept = (tiles != 0).any(axis=(2, 3))
    _round_up(kept)
    rows, places = np.nonzero(kept)
    return np.ascontiguousarray(tiles[rows, places]), rows.astype(np.int32), (places * depth).astype(np.int32)


def _round_up(kept: NDArray[np.bool_]) -> None:
    """Keep some more blocks: their number becomes a multiple of a 32nd of its leading power of two."""
    count = int(kept.sum())
    step = 1 << (count.bit_length() - ROUNDING - 1) if count >= ROUNDED else 1
    missing = min(-count % step, kept.size - count)
    if missing:
        # Spread over all groups, so that none gets much more to do.
        free = np.flatnonzero(~kept)
        kept.flat[free[np.linspace(0, len(free) - 1, missing).astype(np.int64)]] = True


def pack_sparse_conv_weight(
    w: NDArray[Any], width: int, depth: int = 1
) -> tuple[NDArray[Any], NDArray[np.int32], NDArray[np.int32]]:
    """The operands blocks [B, depth, width], rows and starts of `BlockSparseConv` for the weights w [O, C, kh, kw].

    `depth` divides C.
    """
    outputs, channels, *kernel = w.shape
    split = w.reshape(outputs, channels // depth, depth, *kernel)
    return pack_blocks(np.moveaxis(split, 2, -1).reshape(outputs, -1).T, depth, width)


def vector_density(w: NDArray[Any], width: int) -> float:
    """The share of vectors of `width` outputs of w [O, ...] in which a weight is not zero."""
    supports = (w != 0).reshape(w.shape[0], -1)
    starts = np.arange(0, w.shape[0], width)
    return float(np.logical_or.reduceat(supports, starts, axis=0).mean()) if w.size else 0.0


def block_density(w: NDArray[Any], depth: int, width: int) -> float:
    """The share of blocks of `depth` channels x `width` outputs at one tap of w [O, C, ...] that hold a weight."""
    by_tap = (w != 0).reshape(*w.shape[:2], -1)
    for axis, step in enumerate((width, depth)):
        by_tap = np.logical_or.reduceat(by_tap, np.arange(0, w.shape[axis], step), axis=axis)
    return float(by_tap.mean()) if w.size else 0.0
