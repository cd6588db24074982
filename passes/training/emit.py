"""Emit the nodes of a training step: operators on tensors and numbers, whose types and shapes are known at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt.graph.edit import AttributeValue, Editor, dims
from graphopt.graph.state import PHASE, Phase

_DECIDING = frozenset({"And", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "Not", "Or"})


class Emitter:
    """Emits nodes of the phase `update` before the node `before` (None: at the end), named after `prefix`.

    emit("Mul", weight, 0.9)     ->     w.mul = Mul(w, 0.9), 0.9 an initializer of w's type that all nodes share
    """

    def __init__(self, editor: Editor, numbers: Numbers, before: ir.Node | None, prefix: str) -> None:
        """`numbers` are shared by all emitters of a model."""
        self.editor = editor
        self.numbers = numbers
        self.before = before
        self.prefix = prefix

    def __call__(
        self,
        op_type: str,
        *inputs: ir.Value | float,
        dtype: ir.DataType | None = None,
        shape: Sequence[int] | None = None,
        output: str = "",
        domain: str = "",
        **attributes: AttributeValue,
    ) -> ir.Value:
        """The result of an operator.

        It has the type `dtype`, or that of the last tensor among the inputs (bool for comparisons), and so have numbers
        among them; its shape is `shape`, or that to which the inputs broadcast.
        """
        kind = dtype or next(value.dtype for value in reversed(inputs) if isinstance(value, ir.Value))
        assert kind is not None
        values = [value if isinstance(value, ir.Value) else self.numbers(value, kind) for value in inputs]
        if shape is None:
            shape = np.broadcast_shapes(*(dims(value) or () for value in values))
        name = f"{self.prefix}.{op_type.lower()}"
        result = self.editor.insert(
            self.before,
            op_type,
            values,
            attributes,
            shape=shape,
            dtype=ir.DataType.BOOL if op_type in _DECIDING else kind,
            name=name,
            output=output or name,
            domain=domain,
        )
        node = result.producer()
        assert node is not None
        node.metadata_props[PHASE] = Phase.UPDATE.value
        return result

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """`value` as `dtype`; itself if it has that type."""
        return value if value.dtype == dtype else self("Cast", value, dtype=dtype, to=dtype.value)


class Numbers:
    """Scalar constants of a model, one for each number and type."""

    def __init__(self, editor: Editor) -> None:
        """Constants are made through `editor`."""
        self._editor = editor
        self._made: dict[tuple[float, ir.DataType], ir.Value] = {}

    def __call__(self, number: float, dtype: ir.DataType) -> ir.Value:
        """The scalar `number` of type `dtype`."""
        key = number, dtype
        if key not in self._made:
            self._made[key] = self._editor.constant(np.asarray(number, dtype.numpy()), f"{number:g}")
        return self._made[key]
