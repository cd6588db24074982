"""Replace operators that ONNX defines by a function by its nodes, where a target supports these but not the operator.

    loss = NegativeLogLikelihoodLoss(x, t)   ->   u = Unsqueeze(t); g = GatherElements(x, u); n = Neg(g); ...

The body is loaded as a model of its own, with the node's static types, so that shapes are inferred and constants folded
before the target is asked about it. A body with a single node that the target refuses leaves the operator as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common

from graphopt.errors import GraphoptError
from graphopt.frontend.load import IR_VERSION, load
from graphopt.graph.constness import tensor_of

Supports = Callable[[ir.Node, Mapping[str, int]], str | None]

MAX_CONSTANT = 4096
"""Elements of an operand up to which its value takes part in folding the body."""

_DOMAIN = "expanded"


def expand_functions(model: ir.Model, supports: Supports) -> int:
    """Replace refused nodes of the main graph by their functions' bodies, in place; returns how many were replaced."""
    count = 0
    for node in list(model.graph):
        if supports(node, model.opset_imports) is None or _computed_otherwise(node):
            continue
        body = _body(node, model.opset_imports, supports)
        if body is not None and _splice(model, node, body):
            count += 1
    if count:
        common.RemoveUnusedNodesPass()(model)
        common.NameFixPass()(model)
    return count


def _computed_otherwise(node: ir.Node) -> bool:
    """Whether ONNX Runtime's own kernel differs from the function: on integers it truncates every exponential."""
    x = node.inputs[0] if node.inputs else None
    return node.op_type == "ReduceLogSumExp" and x is not None and x.dtype is not None and x.dtype.is_integer()


def _body(node: ir.Node, opsets: Mapping[str, int], supports: Supports) -> ir.Model | None:
    """What `node` computes, as a model whose inputs are the node's own; None if it is not all native."""
    proto = _as_model(node, opsets)
    if proto is None:
        return None
    try:
        model = load(proto).model
    except GraphoptError:
        return None
    expand_functions(model, supports)
    version = opsets.get("", 1)
    for inner in model.graph:
        if inner.domain != "" or supports(inner, {**opsets, **model.opset_imports}) is not None:
            return None
        if not _same_operator(inner.op_type, model.opset_imports.get("", version), version):
            return None
    return model


def _same_operator(op_type: str, one: int, other: int) -> bool:
    try:
        first, second = onnx.defs.get_schema(op_type, one), onnx.defs.get_schema(op_type, other)
    except onnx.defs.SchemaError:
        return False
    return bool(first.since_version == second.since_version)


def _as_model(node: ir.Node, opsets: Mapping[str, int]) -> onnx.ModelProto | None:
    """A model of `node` alone, which is a call of its function."""
    types = [_type(value) for value in node.inputs]
    known = [kind for kind in types if kind is not None]
    if len(known) < len(types) or node.domain not in opsets:
        return None
    proto = ir.serde.serialize_node(node)
    function = _function(proto, opsets[node.domain], known)
    if function is None:
        return None
    function.domain = proto.domain = _DOMAIN
    graph = onnx.GraphProto(name=node.name or node.op_type, node=[proto])
    seen: set[str] = set()
    for value, kind in zip(node.inputs, known, strict=True):
        if value is None or value.name is None or value.name in seen:
            continue
        seen.add(value.name)
        if (tensor := tensor_of(value)) is not None and tensor.size <= MAX_CONSTANT:
            initializer = ir.serde.serialize_tensor(tensor)
            initializer.name = value.name
            graph.initializer.append(initializer)
        else:
            graph.input.append(onnx.helper.make_value_info(value.name, kind))
    graph.output.extend(ir.serde.serialize_value(value) for value in node.outputs if value.name and _wanted(value))
    imports = [onnx.helper.make_opsetid(_DOMAIN, 1), *function.opset_import]
    return onnx.helper.make_model(graph, functions=[function], opset_imports=imports, ir_version=IR_VERSION)


def _wanted(value: ir.Value) -> bool:
    return value.is_graph_output() or bool(value.uses())


def _type(value: ir.Value | None) -> onnx.TypeProto | None:
    """The static type of an operand, an empty one where it is absent; None where it is not static."""
    if value is None:
        return onnx.TypeProto()
    tensor = tensor_of(value)
    shape, dtype = (value.shape, value.dtype) if tensor is None else (tensor.shape, tensor.dtype)
    if not isinstance(value.type, ir.TensorType | type(None)) or shape is None or dtype is None:
        return None
    if not all(isinstance(dim, int) for dim in shape):
        return None
    return onnx.helper.make_tensor_type_proto(int(dtype), list(shape.numpy()))


def _function(node: onnx.NodeProto, version: int, types: list[onnx.TypeProto]) -> onnx.FunctionProto | None:
    """The body of the operator's function for this opset; the node gets the attributes it leaves at their default."""
    try:
        schema: Any = onnx.defs.get_schema(node.op_type, version, node.domain)
    except onnx.defs.SchemaError:
        return None
    given = {attribute.name for attribute in node.attribute}
    for name, attribute in schema.attributes.items():
        if name not in given and attribute.default_value.name:
            node.attribute.append(attribute.default_value)
    data = b""
    if fitting := [v for v in schema.function_opset_versions if v <= version]:
        data = schema.get_function_with_opset_version(max(fitting))
    elif fitting := [v for v in schema.context_dependent_function_opset_versions if v <= version]:
        written = [kind.SerializeToString() for kind in types]
        try:
            data = schema.get_context_dependent_function_with_opset_version(
                max(fitting), node.SerializeToString(), written
            )
        except (RuntimeError, ValueError, TypeError):  # a builder that wants other types or attributes
            return None
    if not data:
        return None
    function = onnx.FunctionProto()
    function.ParseFromString(data)
    del function.output[len(node.output) :]  # a body may leave out what the node does not ask for
    return function


def _splice(model: ir.Model, node: ir.Node, body: ir.Model) -> bool:
    """Replace `node` by the nodes of `body`; False where no node computes an output."""
    graph, inner = model.graph, body.graph
    results = list(inner.outputs)
    if any(value.producer() is None for value in results):
        return False
    actual = {str(value.name): value for value in node.inputs if value is not None}
    for value in list(inner.inputs):
        value.replace_all_uses_with(actual[str(value.name)])
    for value in list(inner.initializers.values()):
        del inner.initializers[str(value.name)]
        value.name = f"{node.name}/{value.name}"
        graph.register_initializer(value)
    nodes = list(inner)
    inner.outputs.clear()
    inner.remove(nodes)
    for part in nodes:
        part.name = f"{node.name}/{part.name}"
        for output in part.outputs:
            output.name = f"{node.name}/{output.name}"
    wanted = [value for value in node.outputs if value.name and _wanted(value)]
    ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, wanted, results)
    return True
