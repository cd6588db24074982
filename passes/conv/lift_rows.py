"""Rewrite convolutions along one axis, or over volumes of one plane, to two dimensions, which have every algorithm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.graph.edit import Editor, array_of, dims, ints, is_op
from graphopt.ops import MINIMUM_OPSET
from graphopt.passes.conv.row_forms import (
    COLUMN,
    ELEMENTWISE,
    FOLLOWING,
    ROW,
    VIEWS,
    VOLUME,
    WINDOWS,
    Shape,
    has_depth,
    on_row,
    window_on_row,
)
from graphopt.pipeline.pass_base import Pass, PassResult, Refusal


@dataclass(frozen=True)
class LiftRows(Pass):
    """Let one-dimensional convolutions, and what follows them element by element, work on planes of one row.

        y = Relu(Conv(x, w))   x [N, C, L]        ->  y = Reshape(Relu(Conv(Reshape(x), w)))   x [N, C, 1, L]
        y = Conv(x, w)         x [N, C, L, 1]     ->  the same, for a kernel of one column
        y = Conv(x, w)         x [N, C, 1, H, W]  ->  the same on planes [N, C, H, W], for a kernel of depth one

    The Reshapes are views and cost nothing; between two such convolutions, over elementwise operators, pools, Concat of
    channels, Pad and the model's own Squeeze and Unsqueeze, there are none. `select-conv` then has one case, and sees
    no columns [N, C, L, 1], whose rows of one element fill no tile. A Conv without constant weights or static shapes
    stays, with the reason.
    """

    name: ClassVar[str] = "lift-rows"

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite the main graph; refusals name one-dimensional convolutions that stay."""
        lift = _Lift(Editor(model, self.name))
        refusals = []
        if model.opset_imports.get("", 1) < MINIMUM_OPSET:
            return PassResult(model, False)
        for node in tuple(model.graph):
            if node.graph is None:
                continue  # it was erased with its consumer
            if is_op(node, "Conv"):
                if reason := lift.convolution(node):
                    refusals.append(Refusal(str(node.name), reason))
            elif is_op(node, *FOLLOWING):
                lift.follow(node)
            elif is_op(node, *VIEWS):
                lift.view(node)
        return PassResult(model, lift.editor.modified, tuple(refusals))


def _read(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


class _Lift:
    """One run of the pass.

    `rows` maps a tensor to its twin on planes of one row, `flat` holds tensors that have that shape in the model
    already, and `views` maps (other operand, shape) to the operand in that shape.
    """

    def __init__(self, editor: Editor) -> None:
        self.editor = editor
        self.rows: dict[ir.Value, ir.Value] = {}
        self.flat: set[ir.Value] = set()
        self.views: dict[tuple[ir.Value, Shape], ir.Value] = {}

    def convolution(self, node: ir.Node) -> str | None:
        """Lift a Conv along one axis, or say why it is left."""
        x, y, w = dims(node.inputs[0]), dims(node.outputs[0]), dims(node.inputs[1])
        if w is None or len(w) not in (ROW, COLUMN, VOLUME):
            return None
        if x is None or y is None:
            return "its shapes are not static" if len(w) == ROW else None
        pads = ints(node, "pads", [0] * 2 * (len(w) - 2))
        if len(w) == COLUMN and ((x[2] == 1 or x[3] != 1 or w[3] != 1) or pads[1] or pads[3]):
            self.flat |= {node.outputs[0]} if y[2] == 1 < y[3] else set()
            return None
        if len(w) == VOLUME and (x[2] != 1 or w[2] != 1 or has_depth(node)):
            return None
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if array_of(node.inputs[1]) is None or (bias is not None and array_of(bias) is None):
            return "weights or bias are not constant"
        if node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
            return "auto_pad is set; run normalize first"
        operands = [self._on_row(node, value) for value in node.inputs[:2]]
        self._emit(node, [*operands, *node.inputs[2:]], window_on_row(node))
        return None

    def follow(self, node: ir.Node) -> None:
        """Lift a node that reads a lifted tensor, if it means the same on planes of one row."""
        y = dims(node.outputs[0])
        data = [value for value in node.inputs if value is not None and value in self.rows]
        if y is not None and len(y) == COLUMN and y[2] == 1 and self.flat.intersection(node.inputs):
            self.flat.add(node.outputs[0])
            return
        if y is None or len(y) not in (ROW, COLUMN, VOLUME) or not data:
            return
        if (len(y) == COLUMN and y[3] != 1) or (len(y) == VOLUME and (y[2] != 1 or has_depth(node))):
            return
        if any(dims(value) is None for value in node.inputs if value is not None):
            return
        if any(len(dims(value) or ()) != len(y) for value in data) or any(_read(value) for value in node.outputs[1:]):
            return
        given: dict[str, Any] = {name: attribute.value for name, attribute in node.attributes.items()}
        inputs = list(node.inputs)
        if node.op_type == "Pad":
            pads = array_of(node.inputs[1])
            if pads is None or pads.size != 2 * len(y) or len(inputs) > 3:
                return
            apart = pads.reshape(2, -1)
            if len(y) == VOLUME:
                if apart[:, 2].any():
                    return
                moved = np.delete(apart, 2, 1)
            else:
                moved = np.insert(apart, 2, 0, 1) if len(y) == ROW else apart[:, [0, 1, 3, 2]]
            inputs[1] = self.editor.constant(moved.reshape(-1), f"{node.name}.pads")
            inputs[0] = self._on_row(node, inputs[0])
        elif node.op_type in ELEMENTWISE:
            inputs = [self._on_row(node, value, len(y)) for value in inputs]
        else:
            if node.op_type == "Concat" and given.get("axis") not in (1, 1 - len(y)):
                return
            if node.op_type in WINDOWS:
                if node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
                    return
                given = window_on_row(node)
            given |= {"axis": 1} if node.op_type == "Concat" else {}
            inputs = [self._on_row(node, value) for value in inputs]
        self._emit(node, inputs, given)

    def view(self, node: ir.Node) -> None:
        """Map a view of a lifted tensor to the same twin; drop one that restores the lifted shape."""
        x, y = node.inputs[0], node.outputs[0]
        source = self.rows.get(x, x if x in self.flat else None) if x is not None else None
        shape = dims(source)
        if source is None or shape is None:
            return
        n, c, height, length = shape
        if dims(y) == shape and self.editor.can_replace(y, source):
            self.editor.swap(node, source)
        elif dims(y) in ((n, c, length), (n, c, length, 1), (n, c, 1, height, length)):
            self.rows[y] = source

    def _on_row(self, before: ir.Node, value: ir.Value | None, rank: int = 0) -> ir.Value | None:
        """`value` on planes of one row: its twin, a constant of that shape, or a view of it."""
        shape = None if value is None else dims(value)
        if value is None or shape is None:
            return None
        target = on_row(shape, rank or len(shape))
        if value in self.rows or target == shape:
            return self.rows.get(value, value)
        if (value, target) not in self.views:
            array, name = array_of(value), f"{value.name}.row"
            self.views[value, target] = (
                self._reshape(before, value, target, name)
                if array is None
                else self.editor.constant(array.reshape(target), name)
            )
        return self.views[value, target]

    def _reshape(self, before: ir.Node, value: ir.Value, shape: Shape, output: str) -> ir.Value:
        return self.editor.insert(
            before,
            "Reshape",
            [value, self.editor.constant(np.array(shape, np.int64), f"{before.name}.shape")],
            shape=shape,
            dtype=value.dtype,
            name=f"{before.name}.reshape",
            output=output,
            origin=[before],
        )

    def _emit(self, node: ir.Node, inputs: Sequence[ir.Value | None], attributes: dict[str, Any]) -> None:
        """Replace `node` by its twin on planes of one row, and a view of the twin's result."""
        y, shape = node.outputs[0], dims(node.outputs[0])
        assert shape is not None
        row = self.editor.insert(
            node,
            node.op_type,
            inputs,
            attributes,
            shape=on_row(shape, len(shape)),
            dtype=y.dtype,
            name=f"{node.name}.row",
            output=f"{y.name}.row",
            origin=[node],
        )
        back = self._reshape(node, row, shape, f"{y.name}.line")
        for key, mark in node.metadata_props.items():
            row.producer().metadata_props.setdefault(key, mark)  # type: ignore[union-attr]
        self.rows[back] = row
        self.editor.swap(node, back)
