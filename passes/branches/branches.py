"""Copy the branches of an If to separate models, and move their nodes to the graph that holds the If."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from graphopt.frontend.branches import empty
from graphopt.graph.constness import is_constant, tensor_of
from graphopt.graph.segments import captured

BRANCHES = ("then_branch", "else_branch")


@dataclass(slots=True)
class Branch:
    """`model` is a copy of a branch; `outer` maps its inputs and some constants to the outer values they stand for.

    `condition` stands for the condition of the If. `obstacle` says why the branch cannot move; `impossible`: it cannot
    be computed at all on operands of these shapes. `types` are those of the outputs, None unless all are static.
    `passed_on`: the branch holds nothing but Identity nodes of outer values.
    """

    model: ir.Model
    outer: dict[ir.Value, ir.Value]
    condition: ir.Value
    obstacle: str = ""
    impossible: bool = False
    types: list[tuple[ir.DataType, tuple[int, ...]]] | None = None
    passed_on: bool = field(default=False)


def is_selection(node: ir.Node) -> bool:
    """Whether both branches are nothing but Identity nodes of outer values."""
    return all(_passes_on(node.attributes[name].as_graph()) for name in BRANCHES)


def _passes_on(branch: ir.Graph) -> bool:
    plain = all(node.op_type == "Identity" and node.domain == "" for node in branch)
    inside = {value for node in branch for value in node.outputs}
    return plain and all(value not in inside for node in branch for value in node.inputs)


def trial(model: ir.Model, node: ir.Node, name: str) -> Branch:
    """A copy of the branch `name` of `node`, which is in the main graph of `model`."""
    branch = node.attributes[name].as_graph()
    graph = branch.clone(allow_outer_scope_values=True)
    inner: dict[ir.Value, ir.Value] = {}
    assert node.inputs[0] is not None
    for value in dict.fromkeys([node.inputs[0], *captured(branch)]):
        stand_in = ir.Value(name=value.name, type=value.type, shape=value.shape, const_value=tensor_of(value))
        inner[value] = stand_in
        if is_constant(value):
            graph.register_initializer(stand_in)
        else:
            graph.inputs.append(stand_in)
    for part in (graph, *graph.subgraphs()):
        _substitute(part, inner)
    graph.opset_imports.update(model.opset_imports)
    functions = [function.clone() for function in model.functions.values()]
    alone = ir.Model(graph, ir_version=model.ir_version, functions=functions)
    outer = {stand_in: value for value, stand_in in inner.items()}
    return Branch(alone, outer, inner[node.inputs[0]], passed_on=_passes_on(branch))


def lift(graph: ir.Graph, node: ir.Node, name: str, side: Branch) -> None:
    """Move the nodes of `side` before `node`, whose branch `name` becomes Identity nodes of the results.

    The caller makes names unique.
    """
    inside = side.model.graph
    results = [side.outer.get(value, value) for value in inside.outputs]
    inside.outputs.clear()
    for part in (inside, *inside.subgraphs()):
        _substitute(part, side.outer)
    for value in list(inside.initializers.values()):
        del inside.initializers[str(value.name)]
        if value not in side.outer and (value.uses() or value in results):
            value.name = f"{node.name}/{name}/{value.name}"
            graph.register_initializer(value)
    nodes = list(inside)
    inside.remove(nodes)
    for value in (value for member in nodes for value in member.outputs):
        value.name = f"{node.name}/{name}/{value.name}" if value.name else value.name
    graph.insert_before(node, nodes)
    copies = [ir.node("Identity", [value], name=f"{node.name}/{name}/{index}") for index, value in enumerate(results)]
    for index, (copy, value) in enumerate(zip(copies, results, strict=True)):
        copy.outputs[0].name = f"{node.name}/{name}_{index}"
        copy.outputs[0].type, copy.outputs[0].shape = value.type, value.shape
    empty(node.attributes[name].as_graph())
    passing = ir.Graph([], [copy.outputs[0] for copy in copies], nodes=copies, name=name)
    node.attributes[name] = ir.AttrGraph(name, passing)


def _substitute(graph: ir.Graph, values: Mapping[ir.Value, ir.Value]) -> None:
    for node in graph:
        for place, operand in enumerate(node.inputs):
            if operand is not None and operand in values:
                node.replace_input_with(place, values[operand])
    for place, value in enumerate(graph.outputs):
        if value in values:
            graph.outputs[place] = values[value]
