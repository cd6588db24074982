"""Direct convolutions on blocked tensors; the weights are packed at compile time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from graphopt.ops.layout import pad_to_blocks
from graphopt.ops.window import WINDOW

CONV2D_BLOCKED = """
Conv2dBlocked <strides, pads, dilations, group>(x, w, bias) => (y)
{
    infer = Constant <value_ints = [-1]>()
    batch = Shape <start = 0, end = 1>(x)
    plane = Shape <start = 2, end = 4>(x)
    x_split = Transpose <perm = [0, 1, 4, 2, 3]>(x)
    x_shape = Concat <axis = 0>(batch, infer, plane)
    x_planar = Reshape(x_split, x_shape)

    out_blocks = Shape <start = 0, end = 1>(w)
    in_blocks = Shape <start = 1, end = 2>(w)
    kernel = Shape <start = 2, end = 4>(w)
    in_lanes = Shape <start = 4, end = 5>(w)
    out_lanes = Shape <start = 5, end = 6>(w)
    out_channels = Mul(out_blocks, out_lanes)
    in_channels = Mul(in_blocks, in_lanes)
    w_split = Transpose <perm = [0, 5, 1, 4, 2, 3]>(w)
    w_shape = Concat <axis = 0>(out_channels, in_channels, kernel)
    w_planar = Reshape(w_split, w_shape)
    bias_planar = Reshape(bias, infer)

    planar = Conv <strides: ints = @strides, pads: ints = @pads, dilations: ints = @dilations, group: int = @group>
             (x_planar, w_planar, bias_planar)

    out_plane = Shape <start = 2, end = 4>(planar)
    y_shape = Concat <axis = 0>(batch, out_blocks, out_lanes, out_plane)
    y_split = Reshape(planar, y_shape)
    y = Transpose <perm = [0, 1, 3, 4, 2]>(y_split)
}
"""

# Every output is the sum over the window of input times weight, lane by lane: channels are independent.
DEPTHWISE_CONV2D_BLOCKED = f"""
DepthwiseConv2dBlocked <strides, pads, dilations>(x, w, bias) => (y)
{{
    kernel = Shape <start = 1, end = 3>(w)
    lanes_before = Constant <value_ints = [0, 0]>()
    lanes_after = Constant <value_ints = [0]>()
    pads = Constant <value_ints: ints = @pads>()
    pad_begin, pad_end = Split <num_outputs = 2>(pads)
    all_pads = Concat <axis = 0>(lanes_before, pad_begin, lanes_after, lanes_before, pad_end, lanes_after)
    padded = Pad(x, all_pads)
    {WINDOW}
    by_row = Gather <axis = 2>(padded, rows)
    windows = Gather <axis = 4>(by_row, columns)

    w_axes = Constant <value_ints = [1, 3]>()
    taps = Unsqueeze(w, w_axes)
    products = Mul(windows, taps)
    tap_axes = Constant <value_ints = [3, 5]>()
    sums = ReduceSum <keepdims = 0>(products, tap_axes)
    bias_axes = Constant <value_ints = [1, 2]>()
    bias_lanes = Unsqueeze(bias, bias_axes)
    y = Add(sums, bias_lanes)
}}
"""


def pack_conv_weight(w: NDArray[np.generic], group: int, bi: int, b: int) -> NDArray[np.generic]:
    """Weights of `Conv2dBlocked`: [O, C/group, kh, kw] -> [CO, CIg, kh, kw, bi, b], zero in the padded lanes.

    Raises:
        ValueError: several groups whose channels are not multiples of the blocks (a block would mix two groups).
    """
    out_channels, in_channels, kh, kw = w.shape
    if group > 1 and (in_channels % bi or out_channels // group % b):
        raise ValueError(f"{group} groups of {in_channels} -> {out_channels // group} channels do not fill blocks")
    padded = pad_to_blocks(pad_to_blocks(w, 0, b), 1, bi)
    split = padded.reshape(padded.shape[0] // b, b, padded.shape[1] // bi, bi, kh, kw)
    return np.ascontiguousarray(split.transpose(0, 2, 4, 5, 3, 1))


def pack_depthwise_weight(w: NDArray[np.generic], b: int) -> NDArray[np.generic]:
    """Weights of `DepthwiseConv2dBlocked`: [C, 1, kh, kw] -> [CB, kh, kw, b], zero in the padded lanes."""
    _, _, kh, kw = w.shape
    padded = pad_to_blocks(w[:, 0], 0, b)
    return np.ascontiguousarray(padded.reshape(-1, b, kh, kw).transpose(0, 2, 3, 1))


def pack_bias(bias: NDArray[np.generic], b: int) -> NDArray[np.generic]:
    """[O] -> [CO, b], zero in the padded lanes."""
    return pad_to_blocks(bias, 0, b).reshape(-1, b)
