"""Operators that only move numbers, or take the largest of them, work on quantized bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.graph.edit import Editor, array_of, is_op, only_use
from graphopt.passes.quantize.dequantized import BYTES, Dequantized
from graphopt.pipeline.pass_base import Pass, PassResult

MOVES = ("Expand", "Flatten", "Gather", "MaxPool", "Reshape", "Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze")
"""Operators that output elements of their first operand. MaxPool only compares them, and positive scales keep order."""


@dataclass(frozen=True)
class QuantizedMoves(Pass):
    """DequantizeLinear sinks below operators that choose numbers, and meets QuantizeLinear there.

        y = Reshape(DequantizeLinear(p, s, z), shape)         ->   y = DequantizeLinear(Reshape(p, shape), s, z)
        q = QuantizeLinear(DequantizeLinear(p, s, z), s, z)   ->   q = p
        q = QuantizeLinear(Concat(DequantizeLinear(p, s, z), DequantizeLinear(r, t, u)), s, z)
                                           ->   q = Concat(p, QuantizeLinear(DequantizeLinear(r, t, u), s, z))

    Quantizing tools put the pair around every operator (QDQ). Bytes take a quarter of the memory, and matrix products
    then find quantized operands. The results are the same to the bit.
    """

    name: ClassVar[str] = "quantized-moves"

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite the main graph."""
        editor = Editor(model, self.name)
        for node in tuple(model.graph):
            if node.graph is None:
                continue
            if is_op(node, *MOVES):
                _sink(editor, node)
            elif is_op(node, "QuantizeLinear"):
                _meet(editor, node)
        return PassResult(model, editor.modified)


def _sink(editor: Editor, node: ir.Node) -> None:
    """Apply the node to the quantized bytes, and dequantize its result."""
    source = Dequantized.behind(node.inputs[0])
    if source is None or source.value.dtype not in BYTES or not _usual(source.scales):
        return
    if len(node.outputs) > 1:  # a MaxPool with indices
        return
    after: dict[str, Any] = {}
    if not source.single:
        if node.op_type != "Transpose":
            return
        order = node.attributes.get_ints("perm", None) or list(reversed(range(len(node.inputs[0].shape or ()))))  # type: ignore[union-attr]
        after["axis"] = list(order).index(source.axis)
    attributes: dict[str, Any] = {name: attribute.value for name, attribute in node.attributes.items()}
    result = node.outputs[0]
    moved = editor.insert(
        node,
        node.op_type,
        [source.value, *node.inputs[1:]],
        attributes,
        shape=result.shape,
        dtype=source.value.dtype,
        name=str(node.name),
        output=f"{result.name}.bytes",
        origin=[node],
    )
    operands = [moved, source.scale, *([] if source.zero is None else [source.zero])]
    real = _dequantized(editor, node, operands, result, source.node, after)
    editor.swap(node, real)


def _dequantized(
    editor: Editor, before: ir.Node, operands: list[ir.Value], like: ir.Value, old: ir.Node, attributes: dict[str, Any]
) -> ir.Value:
    return editor.insert(
        before,
        "DequantizeLinear",
        operands,
        attributes,
        shape=like.shape,
        dtype=like.dtype,
        name=str(old.name),
        output=f"{like.name}.real",
        origin=[old],
    )


def _usual(scales: Any) -> bool:
    """Whether quantizing undoes dequantizing, and larger numbers have larger bytes."""
    return bool(np.isfinite(scales).all() and (scales > np.finfo(np.float32).tiny).all())


def _meet(editor: Editor, node: ir.Node) -> None:
    """Drop a DequantizeLinear and QuantizeLinear that cancel; move a QuantizeLinear before a Concat."""
    scale, kind = array_of(node.inputs[1]), node.outputs[0].dtype
    if scale is None or scale.size != 1 or not _usual(scale) or kind not in BYTES:
        return
    x = node.inputs[0]
    source = Dequantized.behind(x)
    if source is not None:
        if _same(source, node) and editor.can_replace(node.outputs[0], source.value):
            editor.swap(node, source.value)
        return
    concat = None if x is None else x.producer()
    if concat is None or not is_op(concat, "Concat") or only_use(concat.outputs[0]) is not node:
        return
    parts = [Dequantized.behind(value) for value in concat.inputs]
    if any(part is None or not part.single or part.value.dtype not in BYTES for part in parts):
        return
    operands = [
        part.value if part is not None and _same(part, node) else _quantized(editor, node, value)
        for part, value in zip(parts, concat.inputs, strict=True)
    ]
    joined = editor.insert(
        node,
        "Concat",
        operands,
        {"axis": concat.attributes.get_int("axis", 0)},
        shape=node.outputs[0].shape,
        dtype=kind,
        name=str(concat.name),
        output=f"{node.outputs[0].name}.bytes",
        origin=[concat, node],
    )
    editor.swap(node, joined)


def _same(part: Dequantized, quantize: ir.Node) -> bool:
    """Whether `quantize` has the scale, the zero point and the type of `part`."""
    zeros = [0 if zero is None else array_of(zero) for zero in (part.zero, (*quantize.inputs, None)[2])]
    if not part.single or part.value.dtype != quantize.outputs[0].dtype or any(zero is None for zero in zeros):
        return False
    scale = array_of(quantize.inputs[1])
    assert scale is not None
    return bool(part.scales.reshape(()) == scale.reshape(()) and np.all(zeros[0] == zeros[1]))


def _quantized(editor: Editor, quantize: ir.Node, value: ir.Value | None) -> ir.Value:
    """`value` quantized with the scale and zero point of `quantize`."""
    assert value is not None
    attributes: dict[str, Any] = {
        name: attribute.value for name, attribute in quantize.attributes.items() if name != "axis"
    }
    return editor.insert(
        quantize,
        "QuantizeLinear",
        [value, *quantize.inputs[1:]],
        attributes,
        shape=value.shape,
        dtype=quantize.outputs[0].dtype,
        name=f"{quantize.name}.part",
        output=f"{value.name}.bytes",
        origin=[quantize],
    )
