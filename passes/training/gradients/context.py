"""What rules share: nodes with known shapes, constants, sums over broadcast axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt import ops
from graphopt.graph.edit import AttributeValue, Editor, dims, ints, is_op

Operand = ir.Value | float | int
Thunk = Callable[[], ir.Value | None]
Gradients = Mapping[int, Thunk]
"""Input of a node -> what emits its gradient; called only for inputs that need one. None is a gradient of zeros."""
Rule = Callable[["Context", ir.Node, Sequence[ir.Value | None]], Gradients]
"""The gradients of the inputs of a node from those of its outputs, of which at least one is there."""

_COMPARISONS = frozenset({"And", "Equal", "Greater", "GreaterOrEqual", "IsNaN", "Less", "LessOrEqual", "Not", "Or"})


@dataclass
class Kept:
    """What a forward node was prepared to keep: `values` for its rule, `outputs` that replace its own in the end."""

    values: tuple[ir.Value, ...]
    outputs: Mapping[int, ir.Value] = field(default_factory=dict)


class Context:
    """Emits the nodes of the backward pass at the end of the graph, or inside `forward` before a node."""

    def __init__(self, editor: Editor) -> None:
        """Emit into the graph of `editor`."""
        self.editor = editor
        self.kept: dict[ir.Node, Kept] = {}
        self._before: ir.Node | None = None
        self._origin: ir.Node | None = None
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
        self._views: dict[tuple[ir.Value, str, tuple[int, ...]], ir.Value] = {}
        self.slices: dict[ir.Value, list[tuple[ir.Node, int, range, ir.Value]]] = {}
        """Gradients of slices (node, axis, elements, gradient) of a value, which are joined once all are known."""
        self.backward: dict[ir.Node, None] = {}
        """The nodes of the backward pass, in their order."""

    @contextmanager
    def of(self, node: ir.Node) -> Iterator[None]:
        """What is emitted stands for `node`."""
        before, self._origin = self._origin, node
        try:
            yield
        finally:
            self._origin = before

    @contextmanager
    def forward(self, node: ir.Node) -> Iterator[None]:
        """What is emitted belongs to the forward pass, right before `node`, which it stands for."""
        place, self._before = self._before, node
        try:
            with self.of(node):
                yield
        finally:
            self._before = place

    def results(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, AttributeValue] | None = None,
        *,
        outputs: Sequence[tuple[Sequence[int], ir.DataType | None]],
    ) -> tuple[ir.Value, ...]:
        """The results, each (shape, dtype), of a new node; of the domain graphopt where that has the operator."""
        origin = self._origin
        domain = ops.DOMAIN if op_type in _CUSTOM else ""
        if origin is None:
            hint = f"loss.{op_type}"
        else:
            hint = f"{origin.name}.{op_type}" if self._before is not None else f"{origin.name}.backward.{op_type}"
        values = self.editor.emit(
            self._before,
            op_type,
            inputs,
            attributes,
            outputs=[(hint, shape, dtype) for shape, dtype in outputs],
            name=hint,
            origin=[origin] if origin is not None else (),
            domain=domain,
        )
        node = values[0].producer()
        if self._before is None and node is not None:
            self.backward[node] = None
        return values

    def result(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, AttributeValue] | None = None,
        *,
        shape: Sequence[int],
        dtype: ir.DataType | None = None,
    ) -> ir.Value:
        """The only result of a new node; its dtype is that of the first input unless `dtype` is given."""
        first = inputs[0]
        kind = dtype if dtype is not None or first is None else first.dtype
        return self.results(op_type, inputs, attributes, outputs=[(shape, kind)])[0]

    def constant(self, array: NDArray[Any]) -> ir.Value:
        """A constant; equal ones are one initializer."""
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.editor.constant(array, f"backward.const{len(self._constants)}")
        return self._constants[key]

    def ints(self, numbers: Sequence[int]) -> ir.Value:
        """A constant list of int64."""
        return self.constant(np.array(numbers, np.int64))

    def number(self, number: float, like: ir.Value) -> ir.Value:
        """A constant scalar with the dtype of `like`."""
        assert like.dtype is not None
        return self.constant(np.asarray(number).astype(like.dtype.numpy()))

    def op(self, op_type: str, *operands: Operand) -> ir.Value:
        """An elementwise operator with broadcasting; numbers become scalars of the dtype of the tensors beside them.

        op("Mul", dy, 2.0)      op("Where", op("Greater", y, 0.0), dy, 0.0)
        """
        typed = operands[1:] if op_type == "Where" else operands
        like = next(value for value in typed if isinstance(value, ir.Value))
        inputs = [value if isinstance(value, ir.Value) else self.number(value, like) for value in operands]
        shape = np.broadcast_shapes(*(shape_of(value) for value in inputs))
        return self.result(
            op_type, inputs, shape=shape, dtype=ir.DataType.BOOL if op_type in _COMPARISONS else like.dtype
        )

    def where(self, condition: ir.Value, a: Operand, b: Operand) -> ir.Value:
        """`a` where `condition` holds, else `b`."""
        return self.op("Where", condition, a, b)

    def zeros(self, shape: Sequence[int], like: ir.Value) -> ir.Value:
        """Zeros, filled in a run: as a constant they would be stored in the model."""
        return self.expand(self.number(0.0, like), shape)

    def cast(self, value: ir.Value, dtype: ir.DataType | None) -> ir.Value:
        """`value` as `dtype`."""
        assert dtype is not None
        if value.dtype == dtype:
            return value
        return self.result("Cast", [value], {"to": int(dtype)}, shape=shape_of(value), dtype=dtype)

    def reshape(self, value: ir.Value, shape: Sequence[int]) -> ir.Value:
        """`value` with another shape; 0 is an extent and does not copy one."""
        if shape_of(value) == tuple(shape):
            return value
        attributes = {"allowzero": 1} if 0 in shape else {}
        return self._view("Reshape", value, shape, lambda: self.result(
            "Reshape", [value, self.ints(shape)], attributes, shape=shape
        ))  # fmt: skip

    def _view(self, op_type: str, value: ir.Value, key: Sequence[int], emit: Callable[[], ir.Value]) -> ir.Value:
        """What `emit` returns; in the backward pass, which is appended to, only once for each key."""
        if self._before is not None:
            return emit()
        name = (value, op_type, tuple(key))
        if name not in self._views:
            self._views[name] = emit()
        return self._views[name]

    def expand(self, value: ir.Value, shape: Sequence[int]) -> ir.Value:
        """`value` broadcast to `shape`."""
        if shape_of(value) == tuple(shape):
            return value
        return self.result("Expand", [value, self.ints(shape)], shape=shape)

    def transpose(self, value: ir.Value, perm: Sequence[int]) -> ir.Value:
        """Axis i of the result is axis perm[i] of `value`; that of a transposed tensor is read from its source."""
        source, order = transposed_from(value)
        perm = [order[axis] for axis in perm]
        if perm == sorted(perm):
            return source
        shape = shape_of(source)
        return self._view("Transpose", source, perm, lambda: self.result(
            "Transpose", [source], {"perm": perm}, shape=[shape[axis] for axis in perm]
        ))  # fmt: skip

    def reduce(self, op_type: str, value: ir.Value, axes: Sequence[int], keep: bool = False) -> ir.Value:
        """ReduceSum, ReduceMean and the like over `axes`."""
        shape = shape_of(value)
        if not axes:
            return value
        kept = [1 if axis in axes else extent for axis, extent in enumerate(shape) if keep or axis not in axes]
        return self.result(op_type, [value, self.ints(axes)], {"keepdims": int(keep)}, shape=kept)

    def sum(self, value: ir.Value, axes: Sequence[int], keep: bool = False) -> ir.Value:
        """The sum over `axes`."""
        return self.reduce("ReduceSum", value, axes, keep)

    def unbroadcast(self, value: ir.Value, like: ir.Value) -> ir.Value:
        """Sum `value` over the axes along which `like` was broadcast to its shape."""
        shape, target = shape_of(value), shape_of(like)
        lead = len(shape) - len(target)
        axes = [axis for axis, extent in enumerate(shape) if axis < lead or (target[axis - lead] == 1 and extent != 1)]
        return self.reshape(self.sum(value, axes), target)

    def along(self, vector: ir.Value, axis: int, rank: int) -> ir.Value:
        """[C] -> [1, C, 1, ...]: `vector` along `axis` of a tensor of rank `rank`."""
        return self.reshape(vector, [math.prod(shape_of(vector)) if place == axis else 1 for place in range(rank)])


def shape_of(value: ir.Value | None) -> tuple[int, ...]:
    """Static extents of a value, which the check of `differentiate` has asked for."""
    shape = dims(value)
    assert shape is not None, f"{value} has no static shape"
    return shape


def transposed_from(value: ir.Value) -> tuple[ir.Value, list[int]]:
    """(source, perm) where `value` is Transpose(source, perm); else `value` itself and its own order.

    A rule that reads the source leaves the transposed copy to the forward pass.
    """
    rank = len(shape_of(value))
    producer = value.producer()
    if producer is None or not is_op(producer, "Transpose") or producer.inputs[0] is None:
        return value, list(range(rank))
    return producer.inputs[0], ints(producer, "perm", list(reversed(range(rank))))


def once(emit: Callable[[], Sequence[ir.Value]], place: int) -> Thunk:
    """The result `place` of a node with several, which whoever asks first emits (`emit` keeps what it returned)."""
    return lambda: emit()[place]


_CUSTOM = frozenset(
    {
        "AveragePoolGradient", "BatchNormalizationGradient", "BatchStatistics", "ConvWeightGradient",
        "CrossEntropyGradient", "CrossEntropyGradientWeighted", "DropoutMask", "GRUGradient", "GRUTraining",
        "GatherGradient", "LSTMGradient", "LSTMTraining", "LayerNormalizationGradient", "LogSoftmaxGradient",
        "MaskByBits", "MaxPoolArgmax", "MaxPoolGradient", "PositiveBits", "SoftmaxGradient",
    }
)  # fmt: skip
