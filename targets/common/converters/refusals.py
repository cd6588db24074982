"""Why a node is refused: above all, what TVM imports to wrong numbers (measured with the ONNX node suite)."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from graphopt.graph.constness import tensor_of


class NotSupported(Exception):
    """A node cannot become native code; the message is the reason in a sentence."""


def _is_inf(node: ir.Node) -> str | None:
    flags = {
        name: node.attributes[name].as_int()
        for name in ("detect_negative", "detect_positive")
        if name in node.attributes
    }
    return "TVM ignores detect_negative and detect_positive of IsInf" if 0 in flags.values() else None


def _depth(node: ir.Node) -> str | None:
    return "TVM reorders SpaceToDepth in the other order"


def _output_shape(node: ir.Node) -> str | None:
    return "TVM ignores output_shape of ConvTranspose" if "output_shape" in node.attributes else None


def _extra_outputs(node: ir.Node) -> str | None:
    return f"TVM computes no second output of {node.op_type}" if len(node.outputs) > 1 else None


def _training_mode(node: ir.Node) -> str | None:
    attribute = node.attributes.get("training_mode")
    training = isinstance(attribute, ir.Attr) and attribute.type == ir.AttributeType.INT and attribute.as_int() != 0
    return "TVM normalizes with the stored statistics in training mode too" if training else None


def _dropout(node: ir.Node) -> str | None:
    if len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output()):
        return "TVM computes no mask of Dropout"
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return None
    training = tensor_of(node.inputs[2])
    dropping = training is None or bool(training.numpy().any())
    return "TVM drops nothing in training mode" if dropping else None


def _layer_normalization(node: ir.Node) -> str | None:
    used = [value for value in node.outputs[1:] if value.uses() or value.is_graph_output()]
    return "TVM gives zeros for the mean and deviation of LayerNormalization" if used else None


def _double_groups(node: ir.Node) -> str | None:
    double = node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType.DOUBLE
    return "TVM's variance in GroupNormalization of doubles can be negative" if double else None


def _integer_root(node: ir.Node) -> str | None:
    operand = node.inputs[0]
    if operand is not None and operand.dtype is not None and operand.dtype.is_integer():
        return f"TVM computes {node.op_type} of integers in another type than ONNX Runtime, which cuts the fraction off"
    return None


WRONG_IN_TVM: dict[str, Callable[[ir.Node], str | None]] = {
    "Attention": lambda node: "TVM converts the opset-23 Attention as another operator of that name",
    "ConvTranspose": _output_shape,
    "IsInf": _is_inf,
    "MaxPool": _extra_outputs,
    "NonMaxSuppression": lambda node: "the number of boxes is known at run time only",
    "SpaceToDepth": _depth,
    "BatchNormalization": _training_mode,
    "Dropout": _dropout,
    "GroupNormalization": _double_groups,
    "LayerNormalization": _layer_normalization,
    "MaxUnpool": lambda node: "TVM unpools to other places where output_shape is given",
    "ReduceL2": _integer_root,
    "ReduceLogSum": _integer_root,
    "ReduceLogSumExp": _integer_root,
    "ReduceMean": _integer_root,
    "Resize": lambda node: "TVM ignores the scales, antialias, and the tie of nearest neighbours of Resize",
    "RoiAlign": lambda node: "TVM moves the regions of RoiAlign before it scales them",
}
