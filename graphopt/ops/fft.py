"""Convolution by the discrete Fourier transform of overlapping tiles: Y[f] = X[f] conj(W[f]) at every frequency f.

A tile of n x n inputs gives (n - kh + 1) x (n - kw + 1) outputs of the correlation; the others wrap around and are
discarded (overlap-save). Real tiles have n^2 / 2 - 2 independent complex frequencies and four real ones. A complex
product (a + ib)(c + id) takes three real ones (Gauss; Knuth, "The Art of Computer Programming" 2, 4.6.4):

    k1 = (a + b) c    k2 = a (d - c)    k3 = b (c + d)    the result is (k1 - k3) + i (k1 + k2)

so all channels are mixed by 3 (n^2 / 2 - 2) + 4 independent real matrix products, the "taps" below.
(Mathieu, Henaff and LeCun, "Fast Training of Convolutional Networks through FFTs", arXiv:1312.5851; Zlateski, Jia, Li
and Durand, "The Anatomy of Efficient FFT and Winograd Convolutions on Modern CPUs", ICS 2019.)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from graphopt.ops.layout import blocks

REAL = 4
"""Frequencies that are real: 0 and n / 2 in both directions."""


def complex_frequencies(n: int) -> int:
    """Independent complex frequencies of a real n x n tile."""
    return (n // 2 - 1) * (n + 2)


def taps(n: int) -> int:
    """Real matrix products per n x n tile."""
    return 3 * complex_frequencies(n) + REAL


def frequencies(n: int) -> NDArray[np.int64]:
    """(row, column) of each frequency, [complex + REAL, 2].

    First the columns 1 to n / 2 - 1 with all their rows; then column 0 and column n / 2 with the rows 1 to n / 2 - 1,
    since the others are conjugates of these; then the real ones.
    """
    half = n // 2
    main = [(row, column) for column in range(1, half) for row in range(n)]
    side = [(row, column) for column in (0, half) for row in range(1, half)]
    return np.array([*main, *side, (0, 0), (half, 0), (0, half), (half, half)])


def outputs(n: int, kernel: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of outputs per tile."""
    return n - kernel[0] + 1, n - kernel[1] + 1


def fft_weight(w: NDArray[np.generic], n: int, b: int, group: int = 1) -> NDArray[np.generic]:
    """u of `Conv2dFft`: [O, C / group, kh, kw] -> [taps * group, O / group blocks, C / group blocks, b, b].

    The first index is tap * group + group, the last two are input and output lane. The taps are c, d - c and c + d of
    every complex frequency c + id = conj(W) / n^2, in the order of `frequencies`, then the real frequencies. They are
    computed in float64 and rounded once, to the dtype of `w`. Padded lanes are zero.

    Raises:
        ValueError: the tile is odd, smaller than 4 or than the kernel, or a group does not fill its blocks.
    """
    out_channels, in_channels, kh, kw = w.shape
    if n < 4 or n % 2:
        raise ValueError(f"the tile of an FFT convolution must be even and at least 4, not {n}")
    if max(kh, kw) > n:
        raise ValueError(f"a {kh}x{kw} kernel does not fit a tile of {n}x{n}")
    if group > 1 and (in_channels % b or out_channels % (group * b)):
        raise ValueError(
            f"{group} groups of {in_channels} -> {out_channels // group} channels do not fill blocks of {b}"
        )
    per_group = out_channels // group
    co, ci = blocks(per_group, b), blocks(in_channels, b)
    rows, columns = frequencies(n).T
    complex_count = complex_frequencies(n)
    packed = np.zeros((taps(n), group, co, ci, b, b), w.dtype)
    for g in range(group):
        for o in range(co):
            for i in range(ci):  # one pair of blocks at a time: the float64 copy stays in the cache
                first = g * per_group + o * b
                part = w[first : min(first + b, (g + 1) * per_group), i * b : (i + 1) * b].astype(np.float64)
                spectrum = np.fft.rfft2(part, s=(n, n))[:, :, rows, columns].transpose(2, 1, 0) / n**2
                c, d = spectrum.real, -spectrum.imag
                cc, dc = c[:complex_count], d[:complex_count]
                u = np.concatenate((cc, dc - cc, cc + dc, c[complex_count:]))
                packed[:, g, o, i, : part.shape[1], : part.shape[0]] = u
    return packed.reshape(-1, co, ci, b, b)


# n = tile; K complex frequencies and R = 4 real ones; m = outputs of a tile; P = N * TH * TW tiles; G groups.
CONV2D_FFT = """
Conv2dFft <tile, kernel_shape, pads, group>(x, u, bias) => (y)
{
    zero = Constant <value_int = 0>()
    one = Constant <value_int = 1>()
    two = Constant <value_int = 2>()
    zeros = Constant <value_ints = [0, 0]>()
    infer = Constant <value_ints = [-1]>()
    axis_0 = Constant <value_ints = [0]>()
    axis_1 = Constant <value_ints = [1]>()
    plane_axes = Constant <value_ints = [2, 3]>()
    n = Constant <value_int: int = @tile>()
    n_vector = Reshape(n, infer)
    n_by_n = Concat <axis = 0>(n_vector, n_vector)
    kernel = Constant <value_ints: ints = @kernel_shape>()
    group = Constant <value_int: int = @group>()
    group_vector = Reshape(group, infer)
    beyond = Sub(n, kernel)
    m = Add(beyond, one)

    half = Div(n, two)
    half_vector = Reshape(half, infer)
    tile_offsets = Range(zero, n, one)
    inner = Range(one, half, one)
    inner_count = Sub(half_vector, one)
    main_shape = Concat <axis = 0>(inner_count, n_vector)
    main_rows_grid = Expand(tile_offsets, main_shape)
    main_rows = Reshape(main_rows_grid, infer)
    inner_column = Unsqueeze(inner, axis_1)
    main_columns_grid = Expand(inner_column, main_shape)
    main_columns = Reshape(main_columns_grid, infer)
    zero_vector = Constant <value_ints = [0]>()
    side_columns_pair = Concat <axis = 0>(zero_vector, half_vector)
    side_columns_column = Unsqueeze(side_columns_pair, axis_1)
    two_vector = Constant <value_ints = [2]>()
    side_shape = Concat <axis = 0>(two_vector, inner_count)
    side_columns_grid = Expand(side_columns_column, side_shape)
    side_columns = Reshape(side_columns_grid, infer)
    real_rows = Concat <axis = 0>(zero_vector, half_vector, zero_vector, half_vector)
    real_columns = Concat <axis = 0>(zero_vector, zero_vector, half_vector, half_vector)
    f_rows = Concat <axis = 0>(main_rows, inner, inner, real_rows)
    f_columns = Concat <axis = 0>(main_columns, side_columns, real_columns)
    real_count = Constant <value_ints = [4]>()
    count = Shape(f_rows)
    complex_count = Sub(count, real_count)

    f_rows_column = Unsqueeze(f_rows, axis_1)
    f_columns_column = Unsqueeze(f_columns, axis_1)
    row_phases = Mul(f_rows_column, tile_offsets)
    column_phases = Mul(f_columns_column, tile_offsets)
    row_phases_grid = Unsqueeze(row_phases, two_vector)
    column_phases_grid = Unsqueeze(column_phases, axis_1)
    phases_sum = Add(row_phases_grid, column_phases_grid)
    phases = Mod(phases_sum, n)
    phases_double = Cast <to = 11>(phases)
    full_turn = Constant <value = double {6.283185307179586}>()
    n_double = Cast <to = 11>(n)
    step = Div(full_turn, n_double)
    angles = Mul(phases_double, step)
    quarter_turn = Constant <value = double {1.5707963267948966}>()
    angles_ahead = Add(angles, quarter_turn)
    cosines_double = Sin(angles_ahead)
    sines_double = Sin(angles)
    cosines = CastLike(cosines_double, x)
    sines_all = CastLike(sines_double, x)
    sines = Slice(sines_all, axis_0, complex_count, axis_0)

    batch = Shape <start = 0, end = 1>(x)
    plane = Shape <start = 2, end = 4>(x)
    pads = Constant <value_ints: ints = @pads>()
    pad_begin, pad_end = Split <num_outputs = 2>(pads)
    pads_sum = Add(pad_begin, pad_end)
    plane_padded = Add(plane, pads_sum)
    plane_and_one = Add(plane_padded, one)
    out_plane = Sub(plane_and_one, kernel)
    out_and_m = Add(out_plane, m)
    out_rounding = Sub(out_and_m, one)
    tiles = Div(out_rounding, m)
    covered = Mul(tiles, m)
    covered_and_kernel = Add(covered, kernel)
    covered_input = Sub(covered_and_kernel, one)
    after_begin = Sub(covered_input, plane)
    pad_cover = Sub(after_begin, pad_begin)
    all_pads = Concat <axis = 0>(zeros, pad_begin, zero_vector, zeros, pad_cover, zero_vector)
    padded = Pad(x, all_pads)

    tile_rows = Gather(tiles, zero)
    tile_row_numbers = Range(zero, tile_rows, one)
    m_rows = Gather(m, zero)
    first_rows = Mul(tile_row_numbers, m_rows)
    first_rows_column = Unsqueeze(first_rows, axis_1)
    rows = Add(first_rows_column, tile_offsets)
    tile_columns = Gather(tiles, one)
    tile_column_numbers = Range(zero, tile_columns, one)
    m_columns = Gather(m, one)
    first_columns = Mul(tile_column_numbers, m_columns)
    first_columns_column = Unsqueeze(first_columns, axis_1)
    columns = Add(first_columns_column, tile_offsets)
    by_row = Gather <axis = 2>(padded, rows)
    d_natural = Gather <axis = 4>(by_row, columns)
    d_tiles = Transpose <perm = [3, 5, 1, 6, 0, 2, 4]>(d_natural)

    d_shape = Mul(n_vector, n_vector)
    d_matrix_shape = Concat <axis = 0>(d_shape, infer)
    d_matrix = Reshape(d_tiles, d_matrix_shape)
    transform_shape = Concat <axis = 0>(infer, d_shape)
    cosine_matrix = Reshape(cosines, transform_shape)
    sine_matrix = Reshape(sines, transform_shape)
    a_and_real = MatMul(cosine_matrix, d_matrix)
    b_negative = MatMul(sine_matrix, d_matrix)
    split_at = Concat <axis = 0>(complex_count, real_count)
    a, v_real = Split <axis = 0>(a_and_real, split_at)
    a_plus_b = Sub(a, b_negative)
    b = Neg(b_negative)
    v_taps = Concat <axis = 0>(a_plus_b, a, b, v_real)

    group_in_blocks = Shape <start = 2, end = 3>(u)
    in_lanes = Shape <start = 3, end = 4>(u)
    in_channels = Mul(group_in_blocks, in_lanes)
    all_taps = Shape <start = 0, end = 1>(v_taps)
    v_group_shape = Concat <axis = 0>(all_taps, group_vector, in_channels, infer)
    v = Reshape(v_taps, v_group_shape)
    group_out_blocks = Shape <start = 1, end = 2>(u)
    out_lanes = Shape <start = 4, end = 5>(u)
    out_channels = Mul(group_out_blocks, out_lanes)
    u_out_first = Transpose <perm = [0, 1, 4, 2, 3]>(u)
    u_shape = Concat <axis = 0>(all_taps, group_vector, out_channels, in_channels)
    u_matrices = Reshape(u_out_first, u_shape)
    products = MatMul(u_matrices, v)

    products_shape = Concat <axis = 0>(all_taps, infer)
    products_matrix = Reshape(products, products_shape)
    split_three = Concat <axis = 0>(complex_count, complex_count, complex_count, real_count)
    k1, k2, k3, y_real = Split <axis = 0>(products_matrix, split_three)
    re = Sub(k1, k3)
    im = Add(k1, k2)
    re_twice = Add(re, re)
    im_twice = Add(im, im)
    re_and_real = Concat <axis = 0>(re_twice, y_real)
    kept_axes = Constant <value_ints = [1, 2]>()
    cosines_kept = Slice(cosines, zeros, m, kept_axes)
    sines_kept = Slice(sines, zeros, m, kept_axes)
    cosines_last = Transpose <perm = [1, 2, 0]>(cosines_kept)
    sines_last = Transpose <perm = [1, 2, 0]>(sines_kept)
    m_area = ReduceProd <keepdims = 1>(m)
    inverse_shape = Concat <axis = 0>(m_area, infer)
    inverse_cosine = Reshape(cosines_last, inverse_shape)
    inverse_sine = Reshape(sines_last, inverse_shape)
    y_from_re = MatMul(inverse_cosine, re_and_real)
    y_from_im = MatMul(inverse_sine, im_twice)
    y_matrix = Sub(y_from_re, y_from_im)

    out_blocks = Mul(group_vector, group_out_blocks)
    y_tiles_shape = Concat <axis = 0>(m, out_blocks, out_lanes, batch, tiles)
    y_tiles = Reshape(y_matrix, y_tiles_shape)
    y_natural = Transpose <perm = [4, 2, 5, 0, 6, 1, 3]>(y_tiles)
    y_covered_shape = Concat <axis = 0>(batch, out_blocks, covered, out_lanes)
    y_covered = Reshape(y_natural, y_covered_shape)
    y_plane = Slice(y_covered, zeros, out_plane, plane_axes)
    bias_lanes = Unsqueeze(bias, kept_axes)
    y = Add(y_plane, bias_lanes)
}
"""
