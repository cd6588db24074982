"""Winograd convolution F(m x m, 3 x 3): Y = A^T [ (G g G^T) . (B^T d B) ] A on overlapping tiles.

Along one axis, F(m, r) for a kernel of 1 x r or r x 1: y = A^T [ (G g) . (B^T d) ], whose operator is in
`graphopt.ops.winograd_axis`. An axis along which a kernel has one element uses the 1 x 1 identity for each matrix.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (arXiv:1509.09308), with the points of Barabasz,
Anderson, Soodhalter and Gregg, "Error Analysis and Improving the Accuracy of Winograd Convolution for Deep Neural
Networks" (ACM TOMS 46(4), 2020, arXiv:1803.10986) for six taps: they give the smallest rounding error of that size.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from graphopt.ops.layout import blocks

KERNEL = 3
POINTS: dict[int, tuple[Fraction, ...]] = {
    1: (),
    4: (Fraction(0), Fraction(1), Fraction(-1)),
    6: (Fraction(0), Fraction(-1), Fraction(1), Fraction(1, 2), Fraction(-2)),
    8: (Fraction(0), Fraction(1), Fraction(-1), Fraction(1, 2), Fraction(-1, 2), Fraction(2), Fraction(-2)),
    10: (
        *(Fraction(0), Fraction(-1), Fraction(1), Fraction(1, 2), Fraction(-2), Fraction(-1, 2), Fraction(2)),
        *(Fraction(-1, 4), Fraction(4)),
    ),
}
"""Interpolation points per number of taps m + r - 1; the point at infinity comes last and is not listed."""

SIZES = (2, 4, 6)
"""Edges m of the output tiles for the 3 x 3 kernel."""

Matrix = tuple[tuple[Fraction, ...], ...]


def tile_of(m: int, kernel: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of a Winograd tile: m along each axis on which the kernel is longer than one element."""
    return (1 if kernel[0] == 1 else m, 1 if kernel[1] == 1 else m)


def exact_matrices(m: int, r: int = KERNEL) -> tuple[Matrix, Matrix, Matrix]:
    """(A^T [m, a], G [a, r], B^T [a, a]) with a = m + r - 1, exactly, by the Cook-Toom construction.

    Row j < a - 1 evaluates at point p_j: A^T[i, j] = p_j^i, G[j, k] = p_j^k / prod_{l != j} (p_j - p_l), and B^T[j]
    holds the coefficients of prod_{l != j} (x - p_l); the last row belongs to infinity. (Blahut, "Fast Algorithms for
    Signal Processing", Cambridge 2010, section 5.1, transposed as in arXiv:1509.09308.)
    """
    a = m + r - 1
    points = POINTS[a]
    infinity = Fraction(1)
    none = Fraction(0)
    at = tuple(
        (*(p**i for p in points), infinity if i == m - 1 else none)
        for i in range(m)
    )  # fmt: skip
    g_rows = []
    bt_rows = []
    for j, p in enumerate(points):
        others = [q for l, q in enumerate(points) if l != j]  # noqa: E741
        scale = Fraction(1)
        for q in others:
            scale *= p - q
        g_rows.append(tuple(p**k / scale for k in range(r)))
        bt_rows.append((*_expand(others), none))
    g_rows.append((*[none] * (r - 1), infinity))
    bt_rows.append(_expand(points))
    assert len(g_rows) == len(bt_rows) == a
    return at, tuple(g_rows), tuple(bt_rows)


def _expand(roots: list[Fraction] | tuple[Fraction, ...]) -> tuple[Fraction, ...]:
    """Coefficients, constant first, of prod (x - root)."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        scaled = [*(-root * c for c in coefficients), Fraction(0)]
        coefficients = [x + y for x, y in zip(shifted, scaled, strict=True)]
    return tuple(coefficients)


def matrices(m: int, r: int = KERNEL) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """(A^T, G, B^T) of `exact_matrices` in float64."""
    at, g, bt = (np.array([[float(v) for v in row] for row in matrix]) for matrix in exact_matrices(m, r))
    return at, g, bt


def possible(m: int, kernel: tuple[int, int]) -> bool:
    """Whether F(m) of this kernel has points: 3 x 3, or one axis with a number of taps in `POINTS`."""
    if 1 not in kernel:
        return kernel == (KERNEL, KERNEL) and m in SIZES
    return max(kernel) > 1 and m > 1 and m + max(kernel) - 1 in POINTS


def winograd_weight(w: NDArray[np.generic], m: int, b: int) -> NDArray[np.generic]:
    """Weights of the operators: [O, C, kh, kw] -> [taps, CO, CI, b, b] (tap, out block, in block, in lane, out lane).

    u = G w G^T is computed in float64 and rounded once, to the dtype of `w`. Padded lanes are zero. The taps are the
    product of those of both axes, m + k - 1 each, or one along an axis where the kernel has one element.

    Raises:
        ValueError: `POINTS` has none for m and this kernel.
    """
    out_channels, in_channels, kh, kw = w.shape
    if not possible(m, (kh, kw)):
        raise ValueError(f"Winograd needs a kernel of 3x3, or of one row or column, for its m of {m}, not {kh}x{kw}")
    rows_m, columns_m = tile_of(m, (kh, kw))
    (_, g_rows, _), (_, g_columns, _) = matrices(rows_m, kh), matrices(columns_m, kw)
    taps = len(g_rows) * len(g_columns)
    co, ci = blocks(out_channels, b), blocks(in_channels, b)
    packed = np.empty((taps, co, ci * b * b), w.dtype)
    rows = np.zeros((kh * kw, ci * b, b))
    for block in range(co):  # one block of output channels at a time: the float64 copy stays in the cache
        lanes = w[block * b : (block + 1) * b]
        rows[:, :in_channels, : len(lanes)] = lanes.reshape(len(lanes), in_channels, kh * kw).transpose(2, 1, 0)
        rows[:, :, len(lanes) :] = 0
        g_w = _along_first(g_rows, rows.reshape(kh, kw, -1))
        g_w_gt = _along_first(g_columns, g_w.transpose(1, 0, 2))  # [column, row, lanes]
        packed[:, block] = g_w_gt.transpose(1, 0, 2).reshape(taps, -1)
    return packed.reshape(taps, co, ci, b, b)


def _along_first(g: NDArray[np.float64], w: NDArray[np.float64]) -> NDArray[np.float64]:
    """sum_k g[i, k] w[k] for [r, n, lanes], by rows: a matrix product of depth r is too small for BLAS's threads."""
    out = np.empty((len(g), *w.shape[1:]))
    for i, factors in enumerate(g):
        terms = [factor * w[k] for k, factor in enumerate(factors) if factor]
        out[i] = sum(terms[1:], terms[0])
    return out


def _table(name: str, index: int) -> str:
    """Text of a Constant [m / 2 - 1, rows, columns] with the matrices of all m, smaller ones padded with zeros."""
    return constant_table(name, [matrices(m)[index] for m in SIZES])


def constant_table(name: str, tables: list[NDArray[np.float64]]) -> str:
    """Text of a Constant [slot, rows, columns] with these matrices, the last the largest, others padded with zeros."""
    rows, columns = tables[-1].shape
    table = np.zeros((len(tables), rows, columns))
    for slot, matrix in enumerate(tables):
        table[slot, : matrix.shape[0], : matrix.shape[1]] = matrix
    values = ", ".join(repr(float(v)) for v in table.reshape(-1))
    return f"{name} = Constant <value = double[{len(tables)}, {rows}, {columns}] {{{values}}}>()"


def products(taps: str) -> str:
    """Text of one matrix product per tap, of u and v [taps, in channels, tiles]; `taps` names a one-element vector."""
    return f"""    out_blocks = Shape <start = 1, end = 2>(u)
    out_lanes = Shape <start = 4, end = 5>(u)
    out_channels = Mul(out_blocks, out_lanes)
    u_out_first = Transpose <perm = [0, 1, 4, 2, 3]>(u)
    u_shape = Concat <axis = 0>({taps}, out_channels, in_channels)
    u_matrices = Reshape(u_out_first, u_shape)
    products = MatMul(u_matrices, v)
"""


# a = m + 2; P = N * TH * TW tiles; the two transforms run along one axis of the tile after the other.
CONV2D_WINOGRAD = f"""
Conv2dWinograd <m, pads>(x, u, bias) => (y)
{{
    zero = Constant <value_int = 0>()
    one = Constant <value_int = 1>()
    two = Constant <value_int = 2>()
    zeros = Constant <value_ints = [0, 0]>()
    infer = Constant <value_ints = [-1]>()
    axis_1 = Constant <value_ints = [1]>()
    plane_axes = Constant <value_ints = [2, 3]>()
    m = Constant <value_int: int = @m>()
    m_vector = Reshape(m, infer)
    a = Add(m, two)
    a_vector = Reshape(a, infer)
    a_by_a = Concat <axis = 0>(a_vector, a_vector)
    m_by_a = Concat <axis = 0>(m_vector, a_vector)
    half = Div(m, two)
    which = Sub(half, one)
    {_table("bt_table", 2)}
    bt_wide = Gather(bt_table, which)
    bt_double = Slice(bt_wide, zeros, a_by_a)
    bt = CastLike(bt_double, x)
    {_table("at_table", 0)}
    at_wide = Gather(at_table, which)
    at_double = Slice(at_wide, zeros, m_by_a)
    at = CastLike(at_double, x)

    batch = Shape <start = 0, end = 1>(x)
    in_blocks = Shape <start = 1, end = 2>(x)
    plane = Shape <start = 2, end = 4>(x)
    pads = Constant <value_ints: ints = @pads>()
    pad_begin, pad_end = Split <num_outputs = 2>(pads)
    pads_sum = Add(pad_begin, pad_end)
    plane_padded = Add(plane, pads_sum)
    out_plane = Sub(plane_padded, two)
    out_and_m = Add(out_plane, m)
    out_rounding = Sub(out_and_m, one)
    tiles = Div(out_rounding, m)
    covered = Mul(tiles, m)
    covered_input = Add(covered, two)
    after_begin = Sub(covered_input, plane)
    pad_cover = Sub(after_begin, pad_begin)
    none = Constant <value_ints = [0]>()
    all_pads = Concat <axis = 0>(zeros, pad_begin, none, zeros, pad_cover, none)
    padded = Pad(x, all_pads)

    tile_offsets = Range(zero, a, one)
    tile_rows = Gather(tiles, zero)
    tile_row_numbers = Range(zero, tile_rows, one)
    first_rows = Mul(tile_row_numbers, m)
    first_rows_column = Unsqueeze(first_rows, axis_1)
    rows = Add(first_rows_column, tile_offsets)
    tile_columns = Gather(tiles, one)
    tile_column_numbers = Range(zero, tile_columns, one)
    first_columns = Mul(tile_column_numbers, m)
    first_columns_column = Unsqueeze(first_columns, axis_1)
    columns = Add(first_columns_column, tile_offsets)
    by_row = Gather <axis = 2>(padded, rows)
    d_natural = Gather <axis = 4>(by_row, columns)
    d_tiles = Transpose <perm = [3, 5, 1, 6, 0, 2, 4]>(d_natural)

    d_rows_shape = Concat <axis = 0>(a_vector, infer)
    d_rows = Reshape(d_tiles, d_rows_shape)
    bt_d = MatMul(bt, d_rows)
    d_columns_shape = Concat <axis = 0>(a_by_a, infer)
    d_columns = Reshape(bt_d, d_columns_shape)
    bt_d_b = MatMul(bt, d_columns)
    taps = Shape <start = 0, end = 1>(u)
    in_lanes = Shape <start = 3, end = 4>(u)
    in_channels = Mul(in_blocks, in_lanes)
    v_shape = Concat <axis = 0>(taps, in_channels, infer)
    v = Reshape(bt_d_b, v_shape)

{products("taps")}
    m_rows = Reshape(products, d_rows_shape)
    at_m = MatMul(at, m_rows)
    m_columns_shape = Concat <axis = 0>(m_by_a, infer)
    m_columns = Reshape(at_m, m_columns_shape)
    at_m_a = MatMul(at, m_columns)
    y_tiles_shape = Concat <axis = 0>(m_vector, m_vector, out_blocks, out_lanes, batch, tiles)
    y_tiles = Reshape(at_m_a, y_tiles_shape)
    y_natural = Transpose <perm = [4, 2, 5, 0, 6, 1, 3]>(y_tiles)
    y_covered_shape = Concat <axis = 0>(batch, out_blocks, covered, out_lanes)
    y_covered = Reshape(y_natural, y_covered_shape)
    y_plane = Slice(y_covered, zeros, out_plane, plane_axes)
    bias_axes = Constant <value_ints = [1, 2]>()
    bias_lanes = Unsqueeze(bias, bias_axes)
    y = Add(y_plane, bias_lanes)
}}
"""
