"""Pools of the training step on blocked tensors: the planar operator, lane by lane.

`plane` [2] is the plane of dx, which the planar operator reads from the shape S.
"""

from __future__ import annotations

from graphopt.ops.training.pool import AVERAGE_POOL_GRADIENT, MAX_POOL_ARGMAX, MAX_POOL_GRADIENT_STEPS

_TO_PLANAR = """
    {planar}_of_split = Transpose <perm = [0, 1, 4, 2, 3]>({blocked})
    {planar}_of_batch = Shape <start = 0, end = 1>({blocked})
    {planar}_of_plane = Shape <start = 2, end = 4>({blocked})
    {planar}_of_any = Constant <value_ints = [-1]>()
    {planar}_of_shape = Concat <axis = 0>({planar}_of_batch, {planar}_of_any, {planar}_of_plane)
    {planar} = Reshape({planar}_of_split, {planar}_of_shape)
"""

_TO_BLOCKED = """
    {blocked}_outer = Shape <start = 0, end = 2>({like})
    {blocked}_lanes = Shape <start = 4, end = 5>({like})
    {blocked}_plane = Shape <start = 2, end = 4>({planar})
    {blocked}_all = Concat <axis = 0>({blocked}_outer, {blocked}_lanes, {blocked}_plane)
    {blocked}_split = Reshape({planar}, {blocked}_all)
    {blocked} = Transpose <perm = [0, 1, 3, 4, 2]>({blocked}_split)
"""

_SHAPE = """
    S_batch = Shape <start = 0, end = 2>(dY)
    S_plane = Constant <value_ints: ints = @plane>()
    S = Concat <axis = 0>(S_batch, S_plane)
"""


def _inner(body: str) -> str:
    """The nodes of a function's text."""
    return body[body.index("{") + 1 : body.rindex("}")]


_WINDOW = "kernel_shape, strides, dilations, pads, ceil_mode"

MAX_POOL_ARGMAX_BLOCKED = f"""
MaxPoolArgmaxBlocked <{_WINDOW}>(x) => (y, a)
{{
{_TO_PLANAR.format(planar="X", blocked="x")}
{_inner(MAX_POOL_ARGMAX)}
{_TO_BLOCKED.format(planar="Y", blocked="y", like="x")}
{_TO_BLOCKED.format(planar="A", blocked="a", like="x")}
}}
"""

MAX_POOL_GRADIENT_BLOCKED = f"""
MaxPoolGradientBlocked <kernel_shape, strides, dilations, pads, plane>(dy, a) => (dx)
{{
{_TO_PLANAR.format(planar="dY", blocked="dy")}
{_TO_PLANAR.format(planar="A", blocked="a")}
{_SHAPE}
{MAX_POOL_GRADIENT_STEPS}
{_TO_BLOCKED.format(planar="dX", blocked="dx", like="dy")}
}}
"""

AVERAGE_POOL_GRADIENT_BLOCKED = f"""
AveragePoolGradientBlocked <{_WINDOW}, count_include_pad, plane>(dy) => (dx)
{{
{_TO_PLANAR.format(planar="dY", blocked="dy")}
{_SHAPE}
{_inner(AVERAGE_POOL_GRADIENT)}
{_TO_BLOCKED.format(planar="dX", blocked="dx", like="dy")}
}}
"""
