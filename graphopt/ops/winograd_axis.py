"""Winograd convolution along one axis, F(m, r): y = A^T [ (G g) . (B^T d) ] on overlapping tiles of m + r - 1 elements.

The matrices and their sources are those of `graphopt.ops.winograd`, the weights those of `winograd_weight`. B^T depends
on the number of taps alone; A^T is the first m powers of the points, and a last column for infinity.
"""

from __future__ import annotations

import numpy as np

from graphopt.ops.winograd import POINTS, constant_table, matrices, products

TAPS = tuple(taps for taps in POINTS if taps > 1)
"""Numbers of taps m + r - 1."""


def _powers(taps: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """[taps - 1, taps - 1]: element (i, j) is p_j^i."""
    return np.array([[float(p**i) for p in POINTS[taps]] for i in range(taps - 1)])


# axis is 2 or 3. `outer` are all extents before it, `inner` all behind it; T tiles lie along it.
CONV2D_WINOGRAD_AXIS = f"""
Conv2dWinogradAxis <m, axis, pads>(x, u, bias) => (y)
{{
    zero = Constant <value_int = 0>()
    one = Constant <value_int = 1>()
    two = Constant <value_int = 2>()
    none = Constant <value_ints = [0]>()
    one_vector = Constant <value_ints = [1]>()
    two_vector = Constant <value_ints = [2]>()
    zeros = Constant <value_ints = [0, 0]>()
    infer = Constant <value_ints = [-1]>()
    axis_1 = Constant <value_ints = [1]>()
    m = Constant <value_int: int = @m>()
    m_vector = Reshape(m, infer)
    axis_scalar = Constant <value_int: int = @axis>()
    axis_vector = Reshape(axis_scalar, infer)
    a_vector = Shape <start = 0, end = 1>(u)
    a = Squeeze(a_vector, none)
    reach = Sub(a_vector, m_vector)
    points = Sub(a_vector, one_vector)
    half = Div(a, two)
    which = Sub(half, two)

    {constant_table("bt_table", [matrices(taps - 2)[2] for taps in TAPS])}
    bt_wide = Gather(bt_table, which)
    a_by_a = Concat <axis = 0>(a_vector, a_vector)
    bt_double = Slice(bt_wide, zeros, a_by_a)
    bt = CastLike(bt_double, x)
    {constant_table("powers_table", [_powers(taps) for taps in TAPS])}
    powers_wide = Gather(powers_table, which)
    m_by_points = Concat <axis = 0>(m_vector, points)
    powers = Slice(powers_wide, zeros, m_by_points)
    last = Constant <value = double[1, 1] {{1}}>()
    before_last = Sub(m_vector, one_vector)
    above = Concat <axis = 0>(before_last, none, zeros)
    infinity = Pad(last, above)
    at_double = Concat <axis = 1>(powers, infinity)
    at = CastLike(at_double, x)

    along_columns = Sub(axis_vector, two_vector)
    along_rows = Sub(one_vector, along_columns)
    along = Concat <axis = 0>(along_rows, along_columns)
    ends = Shape <start = 0, end = 2>(x)
    batch = Shape <start = 0, end = 1>(x)
    plane = Shape <start = 2, end = 4>(x)
    in_lanes = Shape <start = 4, end = 5>(x)
    pads = Constant <value_ints: ints = @pads>()
    pad_begin, pad_end = Split <num_outputs = 2>(pads)
    pads_sum = Add(pad_begin, pad_end)
    plane_padded = Add(plane, pads_sum)
    reach_along = Mul(along, reach)
    out_plane = Sub(plane_padded, reach_along)
    step_less_one = Mul(along, before_last)
    step = Add(step_less_one, one_vector)
    out_and_step = Add(out_plane, step)
    out_rounding = Sub(out_and_step, one_vector)
    tiles = Div(out_rounding, step)
    tiles_along = Mul(tiles, along)
    count = ReduceSum <keepdims = 0>(tiles_along)
    covered = Mul(tiles, step)
    covered_input = Add(covered, reach_along)
    after_begin = Sub(covered_input, plane)
    pad_cover = Sub(after_begin, pad_begin)
    all_pads = Concat <axis = 0>(zeros, pad_begin, none, zeros, pad_cover, none)
    padded = Pad(x, all_pads)

    offsets = Range(zero, a, one)
    numbers = Range(zero, count, one)
    firsts = Mul(numbers, m)
    firsts_column = Unsqueeze(firsts, axis_1)
    places = Add(firsts_column, offsets)
    padded_shape = Shape(padded)
    outer_shape = Slice(padded_shape, none, axis_vector)
    outer = ReduceProd <keepdims = 1>(outer_shape)
    axis_next = Add(axis_vector, one_vector)
    length = Slice(padded_shape, axis_vector, axis_next)
    lines_shape = Concat <axis = 0>(outer, length, infer)
    lines = Reshape(padded, lines_shape)
    d_natural = Gather <axis = 1>(lines, places)
    d = Transpose <perm = [2, 0, 1, 3]>(d_natural)
    rows_shape = Concat <axis = 0>(a_vector, infer)
    d_rows = Reshape(d, rows_shape)
    bt_d = MatMul(bt, d_rows)
    transformed_shape = Concat <axis = 0>(a_vector, ends, tiles, in_lanes)
    transformed = Reshape(bt_d, transformed_shape)
    v_natural = Transpose <perm = [0, 2, 5, 1, 3, 4]>(transformed)
    in_blocks = Shape <start = 2, end = 3>(u)
    in_channels = Mul(in_blocks, in_lanes)
    v_shape = Concat <axis = 0>(a_vector, in_channels, infer)
    v = Reshape(v_natural, v_shape)

{products("a_vector")}
    products_shape = Concat <axis = 0>(a_vector, out_blocks, out_lanes, batch, tiles)
    products_apart = Reshape(products, products_shape)
    products_blocked = Transpose <perm = [0, 3, 1, 4, 5, 2]>(products_apart)
    m_rows = Reshape(products_blocked, rows_shape)
    at_m = MatMul(at, m_rows)
    out_ends = Concat <axis = 0>(batch, out_blocks)
    tiled_shape = Concat <axis = 0>(out_ends, tiles, out_lanes)
    tiled_outer_shape = Slice(tiled_shape, none, axis_vector)
    tiled_outer = ReduceProd <keepdims = 1>(tiled_outer_shape)
    count_vector = Reshape(count, infer)
    y_lines_shape = Concat <axis = 0>(m_vector, tiled_outer, count_vector, infer)
    y_lines = Reshape(at_m, y_lines_shape)
    y_natural = Transpose <perm = [1, 2, 0, 3]>(y_lines)
    y_covered_shape = Concat <axis = 0>(out_ends, covered, out_lanes)
    y_covered = Reshape(y_natural, y_covered_shape)
    plane_axes = Constant <value_ints = [2, 3]>()
    y_plane = Slice(y_covered, zeros, out_plane, plane_axes)
    bias_axes = Constant <value_ints = [1, 2]>()
    bias_lanes = Unsqueeze(bias, bias_axes)
    y = Add(y_plane, bias_lanes)
}}
"""
