"""Pooling on blocked tensors: channels are independent, so the padded lanes never affect the others."""

from __future__ import annotations

_BODY = """
{name} <{names}>(x) => (y)
{{
    infer = Constant <value_ints = [-1]>()
    batch = Shape <start = 0, end = 1>(x)
    blocks = Shape <start = 1, end = 2>(x)
    plane = Shape <start = 2, end = 4>(x)
    lanes = Shape <start = 4, end = 5>(x)
    x_split = Transpose <perm = [0, 1, 4, 2, 3]>(x)
    x_shape = Concat <axis = 0>(batch, infer, plane)
    x_planar = Reshape(x_split, x_shape)
    planar = {pool}(x_planar)
    out_plane = Shape <start = 2, end = 4>(planar)
    y_shape = Concat <axis = 0>(batch, blocks, lanes, out_plane)
    y_split = Reshape(planar, y_shape)
    y = Transpose <perm = [0, 1, 3, 4, 2]>(y_split)
}}
"""

MAX_POOL_BLOCKED = _BODY.format(
    name="MaxPoolBlocked",
    names="kernel_shape, strides, pads, dilations, ceil_mode",
    pool="MaxPool <kernel_shape: ints = @kernel_shape, strides: ints = @strides, pads: ints = @pads, "
    "dilations: ints = @dilations, ceil_mode: int = @ceil_mode>",
)

# No dilations: AveragePool has them only from opset 19 on.
AVERAGE_POOL_BLOCKED = _BODY.format(
    name="AveragePoolBlocked",
    names="kernel_shape, strides, pads, ceil_mode, count_include_pad",
    pool="AveragePool <kernel_shape: ints = @kernel_shape, strides: ints = @strides, pads: ints = @pads, "
    "ceil_mode: int = @ceil_mode, count_include_pad: int = @count_include_pad>",
)

GLOBAL_AVERAGE_POOL_BLOCKED = """
GlobalAveragePoolBlocked (x) => (y)
{
    plane_axes = Constant <value_ints = [2, 3]>()
    y = ReduceMean <keepdims = 1>(x, plane_axes)
}
"""
