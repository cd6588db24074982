"""Local response normalization across the channels of a blocked tensor."""

from __future__ import annotations

# The sum of squares runs over neighbouring channels, so the padded lanes are sliced off first: they may hold anything.
LRN_BLOCKED = """
LRNBlocked <channels, size, alpha, beta, bias>(x) => (y)
{
    infer = Constant <value_ints = [-1]>()
    zero = Constant <value_ints = [0]>()
    channel_axis = Constant <value_ints = [1]>()
    channels_scalar = Constant <value_int: int = @channels>()
    channel_count = Reshape(channels_scalar, infer)
    batch = Shape <start = 0, end = 1>(x)
    blocks = Shape <start = 1, end = 2>(x)
    plane = Shape <start = 2, end = 4>(x)
    lanes = Shape <start = 4, end = 5>(x)

    x_split = Transpose <perm = [0, 1, 4, 2, 3]>(x)
    x_shape = Concat <axis = 0>(batch, infer, plane)
    x_planar = Reshape(x_split, x_shape)
    x_channels = Slice(x_planar, zero, channel_count, channel_axis)

    normalized = LRN <size: int = @size, alpha: float = @alpha, beta: float = @beta, bias: float = @bias>(x_channels)

    all_lanes = Mul(blocks, lanes)
    missing = Sub(all_lanes, channel_count)
    before = Constant <value_ints = [0, 0, 0, 0, 0]>()
    after = Constant <value_ints = [0, 0]>()
    pads = Concat <axis = 0>(before, missing, after)
    padded = Pad(normalized, pads)
    y_shape = Concat <axis = 0>(batch, blocks, lanes, plane)
    y_split = Reshape(padded, y_shape)
    y = Transpose <perm = [0, 1, 3, 4, 2]>(y_split)
}
"""
