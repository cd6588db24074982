"""Which nodes may be computed speculatively: none that fails on some operands, or is random."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt import ops
from graphopt.graph.constness import is_constant, numbers_of
from graphopt.graph.value_dependence import RANDOM, depends_on_values

_INDICES = frozenset({"Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND"})
"""Operators whose second operand holds indices, which must be in range: zeros are."""

_DIVISIONS = frozenset({"Div", "Mod"})
"""Operators that must not divide integers by zero."""

_DEMANDING = frozenset({
    "MaxUnpool", "NegativeLogLikelihoodLoss", "ReverseSequence", "RoiAlign", "SoftmaxCrossEntropyLoss", "TensorScatter",
    "RotaryEmbedding",
})  # fmt: skip
"""Operators that fail on operands that are no valid positions, lengths or labels."""

_RECURRENT = frozenset({"GRU", "LSTM", "RNN"})


def unsafe(node: ir.Node) -> str:
    """Why `node` cannot run on arbitrary numbers even after `make_safe`, as the end of a sentence; "" if it can."""
    if node.domain not in ("", ops.DOMAIN):
        return f"is an operator of {node.domain}, of which nobody knows whether it takes any numbers"
    if node.op_type in RANDOM or node.op_type == "Dropout":
        return "is random"
    if any(
        attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attribute in node.attributes.values()
    ):
        return "has a body of its own"
    lengths = node.inputs[4] if node.op_type in _RECURRENT and len(node.inputs) > 4 else None
    lengths = node.inputs[6] if node.op_type == "Attention" and len(node.inputs) > 6 else lengths
    if node.op_type in _DEMANDING or depends_on_values(node) or (lengths is not None and not is_constant(lengths)):
        return "may fail on numbers that are not meant for it"
    if node.op_type in _INDICES and 0 in _extents(node.inputs[0]):
        return "takes from an empty tensor"
    return ""


def make_safe(graph: ir.Graph, condition: ir.Value, wanted: bool) -> None:
    """Give operators that could fail safe operands where `condition` is not `wanted`.

    y = Gather(x, i)   ->   y = Gather(x, Where(c, i, 0))
    """
    scalar = condition
    for node in list(graph):
        if not _needs_help(node):
            continue
        if scalar is condition and len(condition.shape or ()) > 0:
            squeeze = ir.node("Squeeze", [condition], name="condition")
            graph.insert_before(node, squeeze)
            scalar = squeeze.outputs[0]
            scalar.name, scalar.type, scalar.shape = "condition", condition.type, ir.Shape(())
        operand = node.inputs[1]
        assert operand is not None
        assert operand.dtype is not None
        number = ir.Tensor(np.array(node.op_type in _DIVISIONS, operand.dtype.numpy()))
        harmless = ir.Value(name=f"{node.name}/harmless", type=operand.type, shape=ir.Shape(()), const_value=number)
        number.name = harmless.name
        graph.register_initializer(harmless)
        where = ir.node("Where", [scalar, *((operand, harmless) if wanted else (harmless, operand))])
        where.name, where.outputs[0].name = f"{node.name}/Where", f"{operand.name}/meant"
        where.outputs[0].type, where.outputs[0].shape = operand.type, operand.shape
        graph.insert_before(node, where)
        node.replace_input_with(1, where.outputs[0])


def _needs_help(node: ir.Node) -> bool:
    """Whether the second operand may hold an index out of range or a divisor that fails (0 or -1)."""
    operand = node.inputs[1] if len(node.inputs) > 1 else None
    if operand is None or operand.dtype is None or node.domain != "":
        return False
    known = numbers_of(operand)
    if node.op_type in _DIVISIONS:
        integral = not operand.dtype.is_floating_point()
        return integral and (known is None or bool(np.isin(known, (0, -1)).any()))
    if node.op_type not in _INDICES:
        return False
    extents = _extents(node.inputs[0])
    if node.op_type in ("GatherND", "ScatterND"):
        extent = min(extents)
    else:
        extent = extents[node.attributes.get_int("axis", 0) or 0]
    return known is None or bool(((known < -extent) | (known >= extent)).any())


def _extents(value: ir.Value | None) -> tuple[int, ...]:
    return value.shape.numpy() if value is not None and value.shape is not None and value.shape.is_static() else ()
