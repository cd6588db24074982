"""Weight gradients of convolutions on blocked tensors; they come out packed as the forward operators read weights.

    dw[o, c, kh, kw] = sum over n, y, z of x[n, c, y * stride + kh * dilation - pad, ...] * dy[n, o, y, z]

That sum is a convolution of the images as channels, whose strides and dilations are exchanged. Padded lanes of x or dy
that are not zero give weights in padded lanes, which `FromBlockedWeight` leaves out.
"""

from __future__ import annotations

from graphopt.ops.window import WINDOW

CONV2D_WEIGHT_GRADIENT_BLOCKED = """
Conv2dWeightGradientBlocked <kernel_shape, strides, pads, dilations, group>(x, dy) => (dw)
{
    infer = Constant <value_ints = [-1]>()
    zero = Constant <value_ints = [0, 0]>()
    plane_axes = Constant <value_ints = [2, 3]>()
    group_scalar = Constant <value_int: int = @group>()
    group = Reshape(group_scalar, infer)
    kernel = Constant <value_ints: ints = @kernel_shape>()
    batch = Shape <start = 0, end = 1>(x)
    in_blocks = Shape <start = 1, end = 2>(x)
    plane = Shape <start = 2, end = 4>(x)
    in_lanes = Shape <start = 4, end = 5>(x)
    out_blocks = Shape <start = 1, end = 2>(dy)
    out_plane = Shape <start = 2, end = 4>(dy)
    out_lanes = Shape <start = 4, end = 5>(dy)
    all_channels = Mul(in_blocks, in_lanes)
    channels = Div(all_channels, group)
    group_blocks = Div(in_blocks, group)
    outputs = Mul(out_blocks, out_lanes)

    x_split = Transpose <perm = [0, 1, 4, 2, 3]>(x)
    x_grouped_shape = Concat <axis = 0>(batch, group, channels, plane)
    x_grouped = Reshape(x_split, x_grouped_shape)
    x_swapped = Transpose <perm = [2, 1, 0, 3, 4]>(x_grouped)
    x_images_shape = Concat <axis = 0>(channels, infer, plane)
    x_images = Reshape(x_swapped, x_images_shape)
    dy_swapped = Transpose <perm = [1, 4, 0, 2, 3]>(dy)
    dy_images_shape = Concat <axis = 0>(outputs, batch, out_plane)
    dy_images = Reshape(dy_swapped, dy_images_shape)

    wide = Conv <strides: ints = @dilations, pads: ints = @pads, dilations: ints = @strides, group: int = @group>
           (x_images, dy_images)
    sums = Slice(wide, zero, kernel, plane_axes)
    split_shape = Concat <axis = 0>(group_blocks, in_lanes, out_blocks, out_lanes, kernel)
    split = Reshape(sums, split_shape)
    dw = Transpose <perm = [2, 0, 4, 5, 1, 3]>(split)
}
"""

DEPTHWISE_WEIGHT_GRADIENT_BLOCKED = f"""
DepthwiseWeightGradientBlocked <kernel_shape, strides, pads, dilations>(x, dy) => (dw)
{{
    kernel = Constant <value_ints: ints = @kernel_shape>()
    lanes_before = Constant <value_ints = [0, 0]>()
    lanes_after = Constant <value_ints = [0]>()
    pads = Constant <value_ints: ints = @pads>()
    pad_begin, pad_end = Split <num_outputs = 2>(pads)
    all_pads = Concat <axis = 0>(lanes_before, pad_begin, lanes_after, lanes_before, pad_end, lanes_after)
    padded = Pad(x, all_pads)
    {WINDOW}
    by_row = Gather <axis = 2>(padded, rows)
    windows = Gather <axis = 4>(by_row, columns)
    tap_axes = Constant <value_ints = [3, 5]>()
    gradients = Unsqueeze(dy, tap_axes)
    products = Mul(windows, gradients)
    place_axes = Constant <value_ints = [0, 2, 4]>()
    dw = ReduceSum <keepdims = 0>(products, place_axes)
}}
"""
