"""Unique names: no two nodes and no two values of a model share a name, across all of its graphs.

Branches of an If may use each other's names, and converters from other frameworks write such models. Rewrites move
nodes between graphs and refer to nodes by name, so names become unique here, once, and wherever graphs are merged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import onnx_ir as ir


def canonical_domain(model: ir.Model) -> None:
    """ "ai.onnx" is another spelling of ""."""
    if "ai.onnx" in model.opset_imports:
        model.opset_imports[""] = model.opset_imports.pop("ai.onnx")
    parts: list[ir.Graph | ir.Function] = [*model.graphs(), *model.functions.values()]
    for part in parts:
        part.name = part.name or "graph"
        for node in part:
            if node.domain == "ai.onnx":
                node.domain = ""


def unique_names(model: ir.Model) -> None:
    """Add missing names and replace repeated ones, in place; inputs and outputs of the model keep theirs.

    An unnamed node is called after its first output, an unnamed value after the node that computes it. Of two equal
    names the outer one stays.
    """
    parts: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for part in parts:
        _Names(part)


class _Names:
    def __init__(self, part: ir.Graph | ir.Function) -> None:
        graphs = [part, *part.subgraphs()]  # outer ones first
        values = dict.fromkeys(value for graph in graphs for value in _values(graph))
        nodes = [node for graph in graphs for node in graph]
        self._present = {ir.Value: {value.name for value in values}, ir.Node: {node.name for node in nodes}}
        self._used: dict[type, set[str]] = {ir.Value: set(), ir.Node: set()}
        self._counts: Counter[str] = Counter()
        for value in values:
            producer = value.producer()
            self._name(value, f"{producer.op_type}_out" if producer is not None else "value")
        for node in nodes:
            self._name(node, next((value.name for value in node.outputs if value.name), None) or node.op_type)

    def _name(self, owner: ir.Value | ir.Node, unnamed: str) -> None:
        used, present = self._used[type(owner)], self._present[type(owner)]
        name = wanted = owner.name or unnamed
        while name in used or (name != owner.name and name in present):
            self._counts[wanted] += 1
            name = f"{wanted}_{self._counts[wanted]}"
        used.add(name)
        if name != owner.name:
            owner.name = name


def _values(graph: ir.Graph | ir.Function) -> Iterator[ir.Value]:
    """The values of `graph`, its inputs and outputs first."""
    yield from graph.inputs
    yield from graph.outputs
    yield from graph.initializers.values() if isinstance(graph, ir.Graph) else ()
    for node in graph:
        yield from node.outputs
