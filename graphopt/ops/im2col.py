"""Convolution as one matrix product (im2col): the windows of the input become the columns of a matrix."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from graphopt.ops.window import WINDOW

CONV2D_IM2COL = f"""
Conv2dIm2col <kernel_shape, strides, pads, dilations>(x, w, bias) => (y)
{{
    kernel = Constant <value_ints: ints = @kernel_shape>()
    no_pads = Constant <value_ints = [0, 0]>()
    pads = Constant <value_ints: ints = @pads>()
    pad_begin, pad_end = Split <num_outputs = 2>(pads)
    all_pads = Concat <axis = 0>(no_pads, pad_begin, no_pads, pad_end)
    padded = Pad(x, all_pads)
    {WINDOW}
    by_row = Gather <axis = 2>(padded, rows)
    windows = Gather <axis = 4>(by_row, columns)
    taps_first = Transpose <perm = [0, 1, 3, 5, 2, 4]>(windows)

    batch = Shape <start = 0, end = 1>(x)
    depth = Shape <start = 1, end = 2>(w)
    infer = Constant <value_ints = [-1]>()
    patches_shape = Concat <axis = 0>(batch, depth, infer)
    patches = Reshape(taps_first, patches_shape)
    product = MatMul(w, patches)

    bias_column = Unsqueeze(bias, last_axis)
    sums = Add(product, bias_column)
    out_channels = Shape <start = 0, end = 1>(w)
    y_shape = Concat <axis = 0>(batch, out_channels, out_plane)
    y = Reshape(sums, y_shape)
}}
"""


def pack_im2col_weight(w: NDArray[np.generic]) -> NDArray[np.generic]:
    """[O, C, kh, kw] -> [O, C*kh*kw]: the rows of the matrix product, in the order of the patches."""
    return w.reshape(w.shape[0], -1)
