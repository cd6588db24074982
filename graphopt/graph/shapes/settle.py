"""Shape inference of one node at a time: after a foreign operator, or after constants that were folded just now."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from graphopt.graph.constness import tensor_of
from graphopt.graph.shapes.foreign import foreign_shapes

LEARNED = "graphopt.learned"
"""Key in the `meta` of a value whose type and shape ONNX Runtime gave: inference takes them as they are."""

CLAIMED = "graphopt.claimed"
"""Key in the `meta` of a value of a subgraph whose shape the model declares and no inference confirms."""


def is_learned(node: ir.Node) -> bool:
    """Whether ONNX Runtime gave the type and shape of an output of `node`."""
    return any(LEARNED in value.meta for value in node.outputs)


def foreign_node(node: ir.Node) -> bool:
    """Give the outputs of `node` the types that `foreign_shapes` knows; returns whether that changed any."""
    types = foreign_shapes(node)
    changed = False
    for value, typed in zip(node.outputs, types or (), strict=False):
        kind, extents = typed
        known = value.shape is not None and value.shape.is_static() and value.shape.numpy() == extents
        if value.name and not (known and value.dtype == kind):
            value.type, value.shape = ir.TensorType(kind), ir.Shape(extents)
            changed = True
    return changed


def _is_of_onnx(node: ir.Node) -> bool:
    """Whether onnx's own inference decides the shapes of `node`."""
    return foreign_shapes(node) is None and not is_learned(node)


def settle(model: ir.Model) -> tuple[set[str], bool]:
    """Correct what onnx's inference left open or computed otherwise than ONNX Runtime, in place, in every graph.

    Returns the first output of each node that is settled here, so that inference of the whole model takes its type as
    given, and whether one of them had another shape before. The consumers of a node that changed are inferred again,
    node by node.
    """
    version = model.opset_imports.get("", 0)
    settled, corrected = set[str](), False
    changed: set[ir.Value] = set()
    for graph in model.graphs():
        for node in graph:
            first = node.outputs[0].shape if node.outputs else None
            if foreign_node(node):
                changed.update(node.outputs)
                corrected |= first is not None and first.is_static()
                settled.add(str(node.outputs[0].name))
            elif node.domain == "" and any(value in changed for value in node.inputs) and _is_of_onnx(node):
                before = [(value.type, value.shape) for value in node.outputs]
                for value in node.outputs:
                    value.shape = None
                infer_node(node, version, model.ir_version)
                for value, (kind, shape) in zip(node.outputs, before, strict=True):
                    value.type = value.type or kind
                    if value.shape != shape:
                        changed.add(value)
    return settled, corrected


def infer_node(node: ir.Node, version: int, ir_version: int) -> None:
    """Infer the outputs of one node from constants folded just now, where the whole-model inference left them open."""
    if all(output.shape is not None and output.shape.is_static() and output.dtype for output in node.outputs):
        return
    types: dict[str, onnx.TypeProto] = {}
    data: dict[str, onnx.TensorProto] = {}
    for value in node.inputs:
        if value is None or not value.name:
            continue
        if value.type is None or value.shape is None:
            return
        types[value.name] = ir.serde.serialize_value(value).type
        if (tensor := tensor_of(value)) is not None and tensor.size <= 64:
            data[value.name] = ir.serde.serialize_tensor(tensor)
    try:
        schema = onnx.defs.get_schema(node.op_type, version, "")
        inferred = onnx.shape_inference.infer_node_outputs(
            schema,
            ir.to_proto(node),
            types,
            data,
            opset_imports=[onnx.helper.make_opsetid("", version)],
            ir_version=ir_version,
        )
    except Exception:  # the whole-model inference that follows names the node if this is the model's fault
        return
    for output in node.outputs:
        if output.name in inferred:
            info = ir.serde.deserialize_value_info_proto(
                onnx.helper.make_value_info(output.name, inferred[output.name]), None
            )
            output.type = info.type
            output.shape = info.shape if info.shape is not None else output.shape  # the shape of a scalar is false
