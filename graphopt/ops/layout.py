"""Blocked layout: channels split into vector blocks, the block innermost.

    x[N, C, H, W]  <->  x[N, CB, H, W, b],  CB = ceil(C / b),  channel c = cb * b + lane

Lanes past C are zero after `ToBlocked`; later operators may leave any finite value in them, and every operator that
mixes channels multiplies them by zero weights or slices them off.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TO_BLOCKED = """
ToBlocked <block>(x) => (y)
{
    block_scalar = Constant <value_int: int = @block>()
    infer = Constant <value_ints = [-1]>()
    block_size = Reshape(block_scalar, infer)
    batch = Shape <start = 0, end = 1>(x)
    channels = Shape <start = 1, end = 2>(x)
    plane = Shape <start = 2>(x)
    negative = Neg(channels)
    missing = Mod(negative, block_size)
    before = Constant <value_ints = [0, 0, 0, 0, 0]>()
    after = Constant <value_ints = [0, 0]>()
    pads = Concat <axis = 0>(before, missing, after)
    padded = Pad(x, pads)
    shape = Concat <axis = 0>(batch, infer, block_size, plane)
    split = Reshape(padded, shape)
    y = Transpose <perm = [0, 1, 3, 4, 2]>(split)
}
"""

FROM_BLOCKED = """
FromBlocked <channels>(x) => (y)
{
    channels_scalar = Constant <value_int: int = @channels>()
    infer = Constant <value_ints = [-1]>()
    stop = Reshape(channels_scalar, infer)
    start = Constant <value_ints = [0]>()
    axis = Constant <value_ints = [1]>()
    split = Transpose <perm = [0, 1, 4, 2, 3]>(x)
    batch = Shape <start = 0, end = 1>(x)
    plane = Shape <start = 2, end = 4>(x)
    shape = Concat <axis = 0>(batch, infer, plane)
    padded = Reshape(split, shape)
    y = Slice(padded, start, stop, axis)
}
"""


def blocks(channels: int, block: int) -> int:
    """Number of blocks that hold `channels` channels."""
    return -(-channels // block)


def pad_to_blocks(array: NDArray[np.generic], axis: int, block: int) -> NDArray[np.generic]:
    """`array` with zeros appended on `axis` up to a multiple of `block`; the same object if it is one already."""
    missing = -array.shape[axis] % block
    if not missing:
        return array
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, missing)
    return np.pad(array, widths)
