"""Weights of convolutions that a run packs: those that training changes, or that a model computes.

    w[O, C, kh, kw]  <->  packed[CO, CI, kh, kw, bi, b], or [CB, kh, kw, b] of one channel per group

What `graphopt.ops.conv` packs at compile time these pack in the graph. The other forms are made from the packed one, so
a forward and a backward convolution share it: the Winograd transform, and the weights of the input's gradient, whose
taps are reversed and whose inputs and outputs have changed places.
"""

from __future__ import annotations

from graphopt.ops.winograd import SIZES, constant_table, matrices

TO_BLOCKED_WEIGHT = """
ToBlockedWeight <in_block, block>(w) => (y)
{
    infer = Constant <value_ints = [-1]>()
    in_scalar = Constant <value_int: int = @in_block>()
    in_lanes = Reshape(in_scalar, infer)
    out_scalar = Constant <value_int: int = @block>()
    out_lanes = Reshape(out_scalar, infer)
    lanes = Concat <axis = 0>(out_lanes, in_lanes)
    channels = Shape <start = 0, end = 2>(w)
    kernel = Shape <start = 2, end = 4>(w)
    negative = Neg(channels)
    missing = Mod(negative, lanes)
    before = Constant <value_ints = [0, 0, 0, 0]>()
    after = Constant <value_ints = [0, 0]>()
    pads = Concat <axis = 0>(before, missing, after)
    padded = Pad(w, pads)
    filled = Add(channels, missing)
    blocks = Div(filled, lanes)
    out_blocks, in_blocks = Split <num_outputs = 2>(blocks)
    shape = Concat <axis = 0>(out_blocks, out_lanes, in_blocks, in_lanes, kernel)
    split = Reshape(padded, shape)
    y = Transpose <perm = [0, 2, 4, 5, 3, 1]>(split)
}
"""

TO_DEPTHWISE_WEIGHT = """
ToDepthwiseWeight <block>(w) => (y)
{
    infer = Constant <value_ints = [-1]>()
    block_scalar = Constant <value_int: int = @block>()
    lanes = Reshape(block_scalar, infer)
    channels = Shape <start = 0, end = 1>(w)
    kernel = Shape <start = 2, end = 4>(w)
    negative = Neg(channels)
    missing = Mod(negative, lanes)
    before = Constant <value_ints = [0, 0, 0, 0]>()
    after = Constant <value_ints = [0, 0, 0]>()
    pads = Concat <axis = 0>(before, missing, after)
    padded = Pad(w, pads)
    shape = Concat <axis = 0>(infer, lanes, kernel)
    split = Reshape(padded, shape)
    y = Transpose <perm = [0, 2, 3, 1]>(split)
}
"""

FLIP_BLOCKED_WEIGHT = """
FlipBlockedWeight <group>(w) => (y)
{
    infer = Constant <value_ints = [-1]>()
    group_scalar = Constant <value_int: int = @group>()
    group = Reshape(group_scalar, infer)
    inner = Shape <start = 1>(w)
    split_shape = Concat <axis = 0>(group, infer, inner)
    split = Reshape(w, split_shape)
    swapped = Transpose <perm = [0, 2, 1, 3, 4, 6, 5]>(split)
    last = Constant <value_ints = [-1, -1]>()
    beyond = Constant <value_ints = [-9223372036854775807, -9223372036854775807]>()
    axes = Constant <value_ints = [3, 4]>()
    reversed = Slice(swapped, last, beyond, axes, last)
    outer = Shape <start = 2>(reversed)
    y_shape = Concat <axis = 0>(infer, outer)
    y = Reshape(reversed, y_shape)
}
"""

# u = G w G^T along the kernel's axes, in double precision as `winograd_weight` computes it.
WINOGRAD_WEIGHT = f"""
WinogradWeight <m>(w) => (u)
{{
    infer = Constant <value_ints = [-1]>()
    one = Constant <value_int = 1>()
    two = Constant <value_int = 2>()
    zeros = Constant <value_ints = [0, 0]>()
    three = Constant <value_ints = [3]>()
    m = Constant <value_int: int = @m>()
    a = Add(m, two)
    a_vector = Reshape(a, infer)
    half_m = Div(m, two)
    which = Sub(half_m, one)
    {constant_table("g_table", [matrices(m)[1] for m in SIZES])}
    g_wide = Gather(g_table, which)
    g_shape = Concat <axis = 0>(a_vector, three)
    g = Slice(g_wide, zeros, g_shape)

    wide = Cast <to = 11>(w)
    taps_first = Transpose <perm = [2, 3, 0, 1, 4, 5]>(wide)
    by_row_shape = Concat <axis = 0>(three, infer)
    by_row = Reshape(taps_first, by_row_shape)
    g_w = MatMul(g, by_row)
    split_shape = Concat <axis = 0>(a_vector, three, infer)
    split = Reshape(g_w, split_shape)
    by_column = Transpose <perm = [1, 0, 2]>(split)
    flat = Reshape(by_column, by_row_shape)
    g_w_g = MatMul(g, flat)
    both_shape = Concat <axis = 0>(a_vector, a_vector, infer)
    both = Reshape(g_w_g, both_shape)
    rows_first = Transpose <perm = [1, 0, 2]>(both)
    channels = Shape <start = 0, end = 2>(w)
    lanes = Shape <start = 4, end = 6>(w)
    u_shape = Concat <axis = 0>(infer, channels, lanes)
    u_double = Reshape(rows_first, u_shape)
    u = CastLike(u_double, w)
}}
"""

FROM_BLOCKED_WEIGHT = """
FromBlockedWeight <shape>(w) => (y)
{
    infer = Constant <value_ints = [-1]>()
    axes = Constant <value_ints = [0, 1]>()
    zero = Constant <value_ints = [0, 0]>()
    begin = Constant <value_ints = [0]>()
    two = Constant <value_ints = [2]>()
    shape = Constant <value_ints: ints = @shape>()
    channels = Slice(shape, begin, two)
    kernel = Shape <start = 2, end = 4>(w)
    out_blocks = Shape <start = 0, end = 1>(w)
    out_lanes = Shape <start = 5, end = 6>(w)
    outputs = Mul(out_blocks, out_lanes)
    split = Transpose <perm = [0, 5, 1, 4, 2, 3]>(w)
    planar_shape = Concat <axis = 0>(outputs, infer, kernel)
    planar = Reshape(split, planar_shape)
    y = Slice(planar, zero, channels, axes)
}
"""

FROM_DEPTHWISE_WEIGHT = """
FromDepthwiseWeight <channels>(w) => (y)
{
    channels_scalar = Constant <value_int: int = @channels>()
    infer = Constant <value_ints = [-1]>()
    stop = Reshape(channels_scalar, infer)
    begin = Constant <value_ints = [0]>()
    one = Constant <value_ints = [1]>()
    kernel = Shape <start = 1, end = 3>(w)
    split = Transpose <perm = [0, 3, 1, 2]>(w)
    planar_shape = Concat <axis = 0>(infer, one, kernel)
    planar = Reshape(split, planar_shape)
    y = Slice(planar, begin, stop, begin)
}
"""
