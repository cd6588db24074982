"""Give the gradient of a Relu one node, which a kernel computes as the end of another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphopt import ops
from graphopt.graph import state
from graphopt.graph.edit import Editor, array_of, dims, is_op
from graphopt.pipeline.pass_base import Pass, PassResult


@dataclass(frozen=True)
class ReluGradients(Pass):
    """A gradient that passes where an activation is positive reads the activation itself.

        positive = Greater(y, 0); dx = Where(positive, dy, 0)   ->   dx = ReluGradient(dy, y)

    TVM fuses what follows a product or a convolution into its kernel, and not what its operands are computed by: the
    comparison would be a kernel of its own, and its result a tensor. Several gradients may share a comparison.
    """

    name: ClassVar[str] = "relu-gradients"

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite the main graph."""
        editor = Editor(model, self.name)
        for node in list(model.graph):
            if not is_op(node, "Where") or state.PHASE not in node.metadata_props:
                continue
            condition, dy, nothing = node.inputs
            compared = None if condition is None else condition.producer()
            if compared is None or not is_op(compared, "Greater") or not _is_zero(compared.inputs[1]):
                continue
            y = compared.inputs[0]
            if not _is_zero(nothing) or y is None or dy is None or dims(y) is None:
                continue
            if not dims(y) == dims(dy) == dims(node.outputs[0]) or y.dtype != dy.dtype:
                continue
            gradient = editor.insert(
                node,
                "ReluGradient",
                [dy, y],
                shape=dims(y),
                dtype=y.dtype,
                name=str(node.name),
                output=str(node.outputs[0].name),
                origin=[node],
                domain=ops.DOMAIN,
            )
            editor.swap(node, gradient)
        return PassResult(model, editor.modified)


def _is_zero(value: ir.Value | None) -> bool:
    array = array_of(value)
    return array is not None and array.size == 1 and not array.any()
