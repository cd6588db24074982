"""The graph as if casts between float32 and half were not there, and the tensors of the cut in it."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable

import onnx_ir as ir

from graphopt.graph.edit import dims, is_op
from graphopt.passes.precision.cut import FLOAT, HALF, Tensor

CAST_BYTES = 6
"""Per number that a cast reads and writes: four on one side, two on the other."""
KEPT = 8
"""So many numbers of a constant kept in float32 weigh as much as a byte that a cast moves in every run."""


class View:
    """`casts` are those nodes, in the order of the graph; `root(v)` is the tensor behind them."""

    def __init__(self, graph: ir.Graph, half: ir.DataType) -> None:
        self.graph = graph
        self.half = half
        self.casts: list[ir.Node] = []
        self._roots: dict[ir.Value, ir.Value] = {}
        for node in graph:
            if is_op(node, "Cast") and node.inputs[0] is not None:
                source, result = node.inputs[0], node.outputs[0]
                if {source.dtype, result.dtype} == {ir.DataType.FLOAT, half}:
                    self.casts.append(node)
                    self._roots[result] = self.root(source)

    def root(self, value: ir.Value) -> ir.Value:
        """The tensor that `value` is, before casts between the two types."""
        return self._roots.get(value, value)

    def tensors(self) -> dict[ir.Value, list[ir.Value]]:
        """Every tensor of the two types, with all the values that it is known as."""
        known: dict[ir.Value, list[ir.Value]] = {}
        made = (output for node in self.graph for output in node.outputs)
        for value in (*self.graph.inputs, *self.graph.initializers.values(), *made):
            if value.dtype in (ir.DataType.FLOAT, self.half):
                known.setdefault(self.root(value), []).append(value)
        return known


def tensors_of(view: View, products: Collection[ir.Node], open_: Collection[ir.Node]) -> list[Tensor]:
    """The tensors of the cut: nodes that are not open stand as the side that they are on."""

    def side(node: ir.Node | None, value: ir.Value) -> Hashable:
        if node in open_:
            return node
        return HALF if node in products or value.dtype == view.half else FLOAT

    transparent = set(view.casts)
    found = []
    for root, known in view.tensors().items():
        consumers = {side(node, value) for value in known for node, _ in value.uses() if node not in transparent}
        consumers |= {side(None, value) for value in known if value.is_graph_output()}
        if root.is_initializer():
            found.append(Tensor(HALF, frozenset(consumers), elements(root) // KEPT))
        else:
            found.append(Tensor(side(root.producer(), root), frozenset(consumers), CAST_BYTES * elements(root)))
    return found


def elements(value: ir.Value | None) -> int:
    """Numbers in a tensor; 1 where its shape is not known, so that a cast of it costs something."""
    extents = dims(value)
    return 1 if extents is None else math.prod(extents)
