"""The gradient of a convolution by its weight."""

from __future__ import annotations

# One convolution: batch and channels change places, dY is the kernel, strides and dilations change roles. With groups,
# the group joins the batch: channel (g, n) of the input [C/G, G * N, ...] meets kernel (g, m) of [M, N, ...].
# Reshaping to [.., .., rest] makes the transpositions independent of the number of spatial axes (1 to 3).
CONV_WEIGHT_GRADIENT = """
ConvWeightGradient <kernel_shape, strides, dilations, pads, group>(X, dY) => (dW)
{
    infer = Constant <value_ints = [-1]>()
    first = Constant <value_ints = [0]>()
    two = Constant <value_ints = [2]>()
    kernel = Constant <value_ints: ints = @kernel_shape>()
    group_scalar = Constant <value_int: int = @group>()
    groups = Reshape(group_scalar, infer)

    batch = Shape <start = 0, end = 1>(X)
    in_channels = Shape <start = 1, end = 2>(X)
    in_plane = Shape <start = 2>(X)
    out_channels = Shape <start = 1, end = 2>(dY)
    out_plane = Shape <start = 2>(dY)
    depth = Div(in_channels, groups)
    merged = Mul(groups, batch)

    x_split_shape = Concat <axis = 0>(batch, groups, depth, infer)
    x_split = Reshape(X, x_split_shape)
    x_turned = Transpose <perm = [2, 1, 0, 3]>(x_split)
    x_shape = Concat <axis = 0>(depth, merged, in_plane)
    x = Reshape(x_turned, x_shape)

    dy_split_shape = Concat <axis = 0>(batch, out_channels, infer)
    dy_split = Reshape(dY, dy_split_shape)
    dy_turned = Transpose <perm = [1, 0, 2]>(dy_split)
    dy_shape = Concat <axis = 0>(out_channels, batch, out_plane)
    dy = Reshape(dy_turned, dy_shape)

    wide = Conv <strides: ints = @dilations, dilations: ints = @strides, pads: ints = @pads, group: int = @group>(x, dy)

    rank = Shape(kernel)
    starts = Sub(kernel, kernel)
    end_axis = Add(rank, two)
    two_scalar = Squeeze(two, first)
    end_scalar = Squeeze(end_axis, first)
    one_scalar = Constant <value_int = 1>()
    axes = Range(two_scalar, end_scalar, one_scalar)
    exact = Slice(wide, starts, kernel, axes)
    dw_split_shape = Concat <axis = 0>(depth, out_channels, infer)
    dw_split = Reshape(exact, dw_split_shape)
    dw_turned = Transpose <perm = [1, 0, 2]>(dw_split)
    dw_shape = Concat <axis = 0>(out_channels, depth, kernel)
    dW = Reshape(dw_turned, dw_shape)
}
"""
