"""What the rules of normalize share that take operators of the domain com.microsoft apart.

A rule reads the node, writes standard operators in front of it, and says what its outputs became. What a rule does not
understand stays as it is, runs in ONNX Runtime, and is reported with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph.edit import AttributeValue, Editor, dims
from graphopt.graph.shapes.foreign import MICROSOFT
from graphopt.graph.shapes.settle import infer_node

__all__ = ["MICROSOFT", "Writer", "operand", "unknown", "used"]


class Writer:
    """Inserts nodes before `node`, each with the type that onnx infers, named after what they stand for."""

    def __init__(self, editor: Editor, node: ir.Node) -> None:
        self.editor, self.node = editor, node
        self._version = editor.model.opset_imports.get("", 0)

    def __call__(self, op_type: str, *inputs: ir.Value | None, **attributes: AttributeValue) -> ir.Value:
        """A new node's output."""
        name = f"{self.node.name}.{op_type.lower()}"
        value = self.editor.insert(
            self.node,
            op_type,
            inputs,
            attributes,
            shape=None,
            dtype=None,
            name=name,
            output=f"{self.node.outputs[0].name}.{op_type.lower()}",
            origin=[self.node],
        )
        producer = value.producer()
        assert producer is not None
        infer_node(producer, self._version, self.editor.model.ir_version)
        return value

    def constant(self, array: Any, dtype: Any = None) -> ir.Value:
        """An initializer."""
        return self.editor.constant(np.asarray(array, dtype), f"{self.node.name}.constant")

    def like(self, number: float, value: ir.Value) -> ir.Value:
        """A scalar of the type of `value`."""
        assert value.dtype is not None
        return self.constant(number, value.dtype.numpy())

    def reshape(self, value: ir.Value, shape: Sequence[int]) -> ir.Value:
        """`value` with static extents."""
        return self("Reshape", value, self.constant(shape, np.int64))

    def cut(self, value: ir.Value, axis: int, begin: int, end: int) -> ir.Value:
        """Part of one axis."""
        return self("Slice", value, *(self.constant([v], np.int64) for v in (begin, end, axis)))

    def finish(self, *results: ir.Value | None) -> None:
        """Let each output of the node, as far as it is used, be the result at its place."""
        for old, new in zip(self.node.outputs, results, strict=False):
            if new is not None and (old.uses() or old.is_graph_output()):
                if not self.editor.can_replace(old, new):
                    new = self("Identity", new)
                self.editor.replace(old, new)
        self.editor.erase(self.node)


def operand(node: ir.Node, index: int) -> ir.Value | None:
    """Input `index`; None where it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def used(node: ir.Node, index: int) -> bool:
    """Whether anybody reads output `index`."""
    return index < len(node.outputs) and bool(node.outputs[index].uses() or node.outputs[index].is_graph_output())


def unknown(node: ir.Node) -> str | None:
    """A reason where operands lack static shapes or types."""
    if any(value is not None and (dims(value) is None or value.dtype is None) for value in node.inputs):
        return f"the operands of {node.op_type} have no static shapes"
    return None
