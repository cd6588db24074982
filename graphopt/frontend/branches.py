"""Replace an If with a constant condition by the nodes of the branch that is taken.

y = If<then: {a = Neg(x)} => a, else: {...}>(True)   ->   y = Neg(x)
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from graphopt.frontend.names import unique_names
from graphopt.graph.constness import tensor_of


def choose_branches(model: ir.Model) -> bool:
    """Replace every If with a constant condition in the main graph, in place; True when anything changed."""
    changed = False
    for node in list(model.graph):
        if node.op_type == "If" and node.domain == "":
            changed |= _choose(node, model.graph)
    if changed:
        _scalar_ranges(model.graph)
        unique_names(model)
    return changed


def _scalar_ranges(graph: ir.Graph) -> None:
    """Make the operands of Range scalars: inside an If, vectors of one element go unnoticed."""
    for node in list(graph):
        if node.op_type != "Range" or node.domain != "":
            continue
        for index, value in enumerate(node.inputs):
            if value is not None and (value.shape is None or len(value.shape) > 0):
                scalar = ir.node("Squeeze", [value])
                graph.insert_before(node, scalar)
                node.replace_input_with(index, scalar.outputs[0])


def _choose(node: ir.Node, graph: ir.Graph) -> bool:
    condition = tensor_of(node.inputs[0]) if node.inputs else None
    if condition is None or condition.size != 1:
        return False
    branch = node.attributes["then_branch" if bool(condition.numpy().reshape(-1)[0]) else "else_branch"].as_graph()
    results = list(branch.outputs)
    inside = {value for inner in branch for value in inner.outputs}
    for value in list(branch.initializers.values()):
        del branch.initializers[str(value.name)]
        value.name = f"{node.name or 'If'}/{value.name}"
        graph.register_initializer(value)
    nodes = list(branch)
    branch.outputs.clear()
    branch.remove(nodes)
    for index, value in enumerate(results):
        if value not in inside or results.index(value) != index:  # an outer value, or one that is two outputs
            copy = ir.node("Identity", [value])
            nodes.append(copy)
            results[index] = copy.outputs[0]
            results[index].type, results[index].shape = value.type, value.shape
    for output in inside:
        output.name = f"{node.name or 'If'}/{output.name}"
    ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, list(node.outputs), results)
    for name in ("then_branch", "else_branch"):
        empty(node.attributes[name].as_graph())
    return True


def empty(graph: ir.Graph) -> None:
    """Remove all nodes of a discarded subgraph, which would still count as consumers of outer values."""
    graph.outputs.clear()
    for node in reversed(list(graph)):
        for attribute in node.attributes.values():
            for inner in subgraphs_of(attribute):
                empty(inner)
        for place in range(len(node.inputs)):
            node.replace_input_with(place, None)
        graph.remove(node)


def subgraphs_of(attribute: ir.Attr) -> Sequence[ir.Graph]:
    """The graphs that an attribute holds."""
    if attribute.type == ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    return attribute.as_graphs() if attribute.type == ir.AttributeType.GRAPHS else []
