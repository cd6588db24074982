"""Products with block-sparse weights: only the blocks that hold a weight other than zero are stored and multiplied.

`blocks` [B, bk, bn] hold bk inputs x bn outputs each. `rows` [B], ascending, names the group of bn outputs that a block
adds to, `starts` [B] its first input. A block's inputs are neighbours, at any offset.
"""

from __future__ import annotations

BLOCK_SPARSE_MATMUL = """
BlockSparseMatMul <outputs>(x, blocks, rows, starts) => (y)
{
    infer = Constant <value_ints = [-1]>()
    zero = Constant <value_int = 0>()
    one = Constant <value_int = 1>()
    first = Constant <value_ints = [0]>()
    last_axis = Constant <value_ints = [-1]>()

    depth = Shape <start = -1>(x)
    matrix_shape = Concat <axis = 0>(infer, depth)
    matrix = Reshape(x, matrix_shape)
    block_depth = Shape <start = 1, end = 2>(blocks)
    block_depth_scalar = Squeeze(block_depth, first)
    steps = Range(zero, block_depth_scalar, one)
    starts_wide = Cast <to = 7>(starts)
    starts_column = Unsqueeze(starts_wide, last_axis)
    places = Add(starts_column, steps)
    picked = Gather <axis = 1>(matrix, places)
    by_block = Transpose <perm = [1, 0, 2]>(picked)
    products = MatMul(by_block, blocks)

    outputs = Constant <value_ints: ints = @outputs>()
    width = Shape <start = 2, end = 3>(blocks)
    one_vector = Constant <value_ints = [1]>()
    less = Sub(width, one_vector)
    rounded = Add(outputs, less)
    groups = Div(rounded, width)
    count = Shape <start = 0, end = 1>(matrix)
    sums_shape = Concat <axis = 0>(groups, count, width)
    zero_like = CastLike(zero, blocks)
    zeros = Expand(zero_like, sums_shape)
    rows_wide = Cast <to = 7>(rows)
    rows_column = Unsqueeze(rows_wide, last_axis)
    sums = ScatterND <reduction = "add">(zeros, rows_column, products)
    by_row = Transpose <perm = [1, 0, 2]>(sums)
    padded_shape = Concat <axis = 0>(count, infer)
    padded = Reshape(by_row, padded_shape)
    kept = Slice(padded, first, outputs, one_vector)
    batch = Shape <start = 0, end = -1>(x)
    y_shape = Concat <axis = 0>(batch, outputs)
    y = Reshape(kept, y_shape)
}
"""
"""`outputs` holds one number, N; y is [..., N]."""
