"""A view of the graph without its casts between float32 and half precision, and the tensors of the minimum cut."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable

import onnx_ir as ir

from graphopt.graph.edit import dims, is_op
from graphopt.passes.precision.cut import FLOAT, HALF, Tensor

CAST_BYTES = 6
"""Bytes per element that a cast reads and writes: four on one side, two on the other."""
KEPT = 8
"""Elements of a constant kept in float32 that weigh as much as one byte that a cast moves in every run."""


class View:
    """`casts` are the casts between float32 and `half`, in graph order; `root(v)` is the tensor before them."""

    def __init__(self, graph: ir.Graph, half: ir.DataType) -> None:
        """Collect the casts of `graph` between float32 and `half`."""
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
        """The tensor that `value` was before casts between the two types."""
        return self._roots.get(value, value)

    def tensors(self) -> dict[ir.Value, list[ir.Value]]:
        """Every tensor of the two types, with all values that hold it, cast or not."""
        known: dict[ir.Value, list[ir.Value]] = {}
        produced = (output for node in self.graph for output in node.outputs)
        for value in (*self.graph.inputs, *self.graph.initializers.values(), *produced):
            if value.dtype in (ir.DataType.FLOAT, self.half):
                known.setdefault(self.root(value), []).append(value)
        return known


def tensors_of(view: View, products: Collection[ir.Node], open_: Collection[ir.Node]) -> list[Tensor]:
    """The tensors of the minimum cut; a node that is not open is represented by its side."""

    def side(node: ir.Node | None, value: ir.Value) -> Hashable:
        if node in open_:
            return node
        return HALF if node in products or value.dtype == view.half else FLOAT

    transparent = set(view.casts)
    tensors = []
    for root, known in view.tensors().items():
        consumers = {side(node, value) for value in known for node, _ in value.uses() if node not in transparent}
        consumers |= {side(None, value) for value in known if value.is_graph_output()}
        if root.is_initializer():
            tensors.append(Tensor(HALF, frozenset(consumers), elements(root) // KEPT))
        else:
            tensors.append(Tensor(side(root.producer(), root), frozenset(consumers), CAST_BYTES * elements(root)))
    return tensors


def elements(value: ir.Value | None) -> int:
    """Number of elements of a tensor; 1 where its shape is not known, so that a cast of it costs something."""
    extents = dims(value)
    return 1 if extents is None else math.prod(extents)
