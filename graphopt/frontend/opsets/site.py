"""The site of a conversion rule: one node in its graph, the nodes inserted before it, and its replacement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

DONE = 2**31 - 1
"""The version of nodes that rules create: operators that mean the same in all opsets since 18."""

Attribute = int | float | str | Sequence[int] | Sequence[float] | ir.TensorProtocol


class NoRule(Exception):  # noqa: N818
    """The node has no equivalent in the newer opset; the text says which part of it has none."""


class Site:
    """A node of opset `version`, and the edits that replace it.

    Attributes:
        node: the node that is converted; a rule may also edit it in place.
        replaced: whether `replace` was called.
    """

    def __init__(self, node: ir.Node, version: int) -> None:
        """Convert `node`, which is of opset `version`."""
        assert node.graph is not None
        self.node, self.version, self.replaced = node, version, False
        self._graph = node.graph

    def input(self, index: int) -> ir.Value | None:
        """The input at `index`, None where the node has none there."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def x(self) -> ir.Value:
        """The first input, which every operator here has."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    def used(self, index: int) -> bool:
        """Whether anything reads the output at `index`."""
        outputs = self.node.outputs
        return index < len(outputs) and (bool(outputs[index].uses()) or outputs[index].is_graph_output())

    def take(self, name: str) -> ir.Attr | None:
        """Remove the attribute `name` of the node and return it."""
        return self.node.attributes.pop(name, None)

    def op(self, op_type: str, *inputs: ir.Value | None, **attributes: Attribute) -> ir.Value:
        """Insert a node before this one; returns its output."""
        name = f"{self.node.name}/{op_type}" if self.node.name else None
        node = ir.node(op_type, inputs, attributes, version=DONE, name=name)
        self._graph.insert_before(self.node, node)
        return node.outputs[0]

    def constant(self, values: Any, dtype: ir.DataType = ir.DataType.INT64) -> ir.Value:
        """Insert a constant before this node."""
        tensor = ir.Tensor(np.asarray(values).astype(dtype.numpy()), dtype=dtype)
        value = self.op("Constant", value=tensor)
        value.type, value.shape = ir.TensorType(dtype), ir.Shape(tensor.shape.numpy())
        return value

    def scalar(self, number: float, like: ir.Value) -> ir.Value:
        """`number` as a scalar of the dtype of `like`."""
        if like.dtype is not None:
            return self.constant(number, like.dtype)
        return self.op("CastLike", self.constant(number, ir.DataType.FLOAT), like)

    def reshape_like(self, value: ir.Value, model: ir.Value) -> ir.Value:
        """`value` in the shape of `model`, which has as many elements."""
        if model.shape is not None and model.shape.is_static() and 0 not in model.shape.numpy():
            return self.op("Reshape", value, self.constant(model.shape.numpy()))
        return self.op("Reshape", value, self.op("Shape", model), allowzero=1)

    def append(self, index: int, value: ir.Value | None) -> None:
        """Make `value` the input at `index`; inputs between it and those that the node has are absent."""
        self.node.resize_inputs(max(len(self.node.inputs), index + 1))
        self.node.replace_input_with(index, value)

    def replace(self, *values: ir.Value | None) -> None:
        """Replace the node's outputs by `values` and remove it. None stands for an output without consumers.

        A value must come from a new node (`op`), since it takes over the output's name.
        """
        pairs = [(old, new) for old, new in zip(self.node.outputs, values, strict=False) if new is not None]
        ir.convenience.replace_nodes_and_values(
            self._graph, self.node, [self.node], [], [old for old, _ in pairs], [new for _, new in pairs]
        )
        self.replaced = True


def rank(value: ir.Value) -> int | None:
    """The number of dimensions, None where it is not known."""
    return None if value.shape is None else len(value.shape)
