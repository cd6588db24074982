"""Helpers for the rules of normalize that rewrite operators of the domain com.microsoft.

A rule reads the node, inserts standard operators before it, and replaces its outputs. A node that its rule does not
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
    """Inserts nodes before `node`, with types and shapes from ONNX inference and names derived from `node`."""

    def __init__(self, editor: Editor, node: ir.Node) -> None:
        """Prepare to insert nodes before `node` through `editor`."""
        self.editor, self.node = editor, node
        self._version = editor.model.opset_imports.get("", 0)

    def __call__(self, op_type: str, *inputs: ir.Value | None, **attributes: AttributeValue) -> ir.Value:
        """Insert a node of the standard domain; its output."""
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
        """An initializer that holds `array`."""
        return self.editor.constant(np.asarray(array, dtype), f"{self.node.name}.constant")

    def like(self, number: float, value: ir.Value) -> ir.Value:
        """A scalar of the type of `value`."""
        assert value.dtype is not None
        return self.constant(number, value.dtype.numpy())

    def reshape(self, value: ir.Value, shape: Sequence[int]) -> ir.Value:
        """`value` reshaped to static extents."""
        return self("Reshape", value, self.constant(shape, np.int64))

    def cut(self, value: ir.Value, axis: int, begin: int, end: int) -> ir.Value:
        """Elements `begin` to `end` (exclusive) of one axis."""
        return self("Slice", value, *(self.constant([v], np.int64) for v in (begin, end, axis)))

    def finish(self, *results: ir.Value | None) -> None:
        """Replace each used output of the node by the result at its position, and erase the node."""
        for old, new in zip(self.node.outputs, results, strict=False):
            if new is not None and (old.uses() or old.is_graph_output()):
                if not self.editor.can_replace(old, new):
                    new = self("Identity", new)
                self.editor.replace(old, new)
        self.editor.erase(self.node)


def operand(node: ir.Node, index: int) -> ir.Value | None:
    """Input `index` of the node; None where it is omitted."""
    return node.inputs[index] if index < len(node.inputs) else None


def used(node: ir.Node, index: int) -> bool:
    """Whether output `index` has consumers or is a graph output."""
    return index < len(node.outputs) and bool(node.outputs[index].uses() or node.outputs[index].is_graph_output())


def unknown(node: ir.Node) -> str | None:
    """The reason against a node whose operands lack static shapes or types; None if all have them."""
    if any(value is not None and (dims(value) is None or value.dtype is None) for value in node.inputs):
        return f"the operands of {node.op_type} have no static shapes"
    return None
