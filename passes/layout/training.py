"""Blocked forms of what training adds to a model: statistics, gradients, masks of activations.

mean, var = BatchStatistics(FromBlocked(x))  ->  mean, var = BatchStatisticsBlocked(x)
db = ReduceSum(FromBlocked(dy), [0, 2, 3])   ->  db = ChannelSumsBlocked(dy)
dx = MaxPoolGradient(dy, a, S)               ->  dx = MaxPoolGradientBlocked(dy, a) {plane of S}
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from graphopt import ops
from graphopt.graph.edit import array_of, dims, is_custom, is_op
from graphopt.passes.layout.form import Form

_FORMS = {
    "AveragePoolGradient": Form((0,), dropped=(1,)),
    "BatchNormalizationGradient": Form((0, 1)),
    "BatchStatistics": Form((0,), outputs=()),
    "InterleavePhases": Form((0,)),
    "MaxPoolArgmax": Form((0,), outputs=(0, 1)),
    "MaxPoolGradient": Form((0, 1), dropped=(2,)),
}
POOLS = frozenset({"AveragePoolGradient", "InterleavePhases", "MaxPoolArgmax", "MaxPoolGradient"})
"""Operators whose planar kernels are slower: their innermost axis is a window's."""


def custom_form(node: ir.Node, block: int) -> Form | str:
    """The blocked form of an operator of the domain `graphopt`, or the reason why it has none."""
    form = _FORMS.get(node.op_type)
    if node.domain != ops.DOMAIN or form is None:
        return f"{node.op_type} is not a standard operator"
    shape = dims(node.inputs[form.data[0]])
    if shape is None or len(shape) != 4:
        return "its input is not a tensor of four static extents"
    if 0 in shape:
        return "it computes nothing"
    if is_custom(node, "InterleavePhases") and (dims(node.outputs[0]) or (0, 1))[1] % block:
        return f"its channels are no multiple of {block}"
    return form


def channel_sum_form(node: ir.Node) -> Form | str:
    """The blocked form of a ReduceSum over all axes but the channels, which are left alone."""
    axes = array_of(node.inputs[1]) if len(node.inputs) > 1 else None
    shape = dims(node.inputs[0])
    if shape is None or len(shape) != 4 or 0 in shape:
        return "its input is not a tensor of four static extents"
    if axes is None or sorted(axis % 4 for axis in axes.reshape(-1).tolist()) != [0, 2, 3]:
        return "only sums over all axes but the channels have a blocked form"
    if node.attributes.get_int("keepdims", 1):
        return "it keeps the axes of its sums"
    return Form((0,), outputs=(), dropped=(1,))


def expand_form(node: ir.Node) -> Form | str:
    """The blocked form of an Expand of a number for each channel to its plane."""
    x, y = dims(node.inputs[0]), dims(node.outputs[0])
    if x is None or y is None or len(x) != 4 or x[:2] != y[:2]:
        return "only an Expand over the plane has a blocked form"
    return Form((0,))


def custom_twin(node: ir.Node) -> tuple[str, dict[str, Any]]:
    """(operator, attributes) of the blocked twin in the domain `graphopt`."""
    if is_op(node, "ReduceSum"):
        return "ChannelSumsBlocked", {"channels": (dims(node.inputs[0]) or ())[1]}
    given: dict[str, Any] = {name: attribute.value for name, attribute in node.attributes.items()}
    if is_custom(node, "BatchStatistics"):
        given["channels"] = (dims(node.inputs[0]) or ())[1]
    if is_custom(node, "MaxPoolGradient", "AveragePoolGradient"):
        given["plane"] = (dims(node.outputs[0]) or ())[2:]
    if is_custom(node, "MaxPoolGradient"):
        given.pop("ceil_mode", None)  # the extents of dy say it
    return f"{node.op_type}Blocked", given
