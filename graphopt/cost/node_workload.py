"""Converts a node of a model to the workload that its cost is looked up by."""

from __future__ import annotations

import onnx_ir as ir

from graphopt import ops
from graphopt.cost.workload import PRECISION, AttributeValue, Operand, Workload
from graphopt.graph.analysis import static_type
from graphopt.graph.constness import constant_array, is_constant

_KINDS = {
    ir.AttributeType.INT: "as_int",
    ir.AttributeType.FLOAT: "as_float",
    ir.AttributeType.STRING: "as_string",
    ir.AttributeType.INTS: "as_ints",
}


def workload_of(node: ir.Node) -> Workload | None:
    """The workload of a node with one output; None where a shape, a dtype or an attribute has no representation."""
    operands = []
    for value in node.inputs:
        type_and_shape = static_type(value) if value is not None else None
        if value is None or type_and_shape is None:
            return None
        if node.domain == ops.DOMAIN and is_constant(value) and type_and_shape[0].startswith("int"):
            operands.append(Operand.of_indices(constant_array(value)))
        else:
            operands.append(Operand(type_and_shape[1], type_and_shape[0], is_constant(value)))
    result = static_type(node.outputs[0]) if len(node.outputs) == 1 else None
    if result is None or not operands or result[0] != operands[0].dtype:
        return None
    attributes: list[tuple[str, AttributeValue]] = []
    for name, attribute in node.attributes.items():
        if not isinstance(attribute, ir.Attr) or attribute.type not in _KINDS:
            return None
        value = getattr(attribute, _KINDS[attribute.type])()
        attributes.append((name, tuple(value) if isinstance(value, list | tuple) else value))
    units = node.metadata_props.get(PRECISION, "")
    return Workload(node.op_type, tuple(operands), result[1], tuple(attributes), node.domain, units)
