"""Join the matrix products that compute q, k and v of attention from one tensor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt.graph.edit import Editor, array_of, dims, is_custom, is_op, only_use
from graphopt.pipeline.pass_base import Pass, PassResult


@dataclass(frozen=True)
class JoinProducts(Pass):
    """Products of one tensor with constant matrices that feed attention become one with the matrices side by side.

        q = Add(MatMul(x, wq), bq)           qkv = Add(MatMul(x, [wq | wk | wv]), [bq | bk | bv])
        k = Add(MatMul(x, wk), bk)      ->   q, k, v = Split(qkv)
        v = Add(MatMul(x, wv), bv)

    A target that reads attention's operands in place pays nothing for the Split, reads x once, and has one large
    product instead of three small ones. Only products whose results reach attention through reshapes and transposes
    alone are joined: elsewhere the Split would be a copy.
    """

    name: ClassVar[str] = "join-products"

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite the main graph."""
        editor = Editor(model, self.name)
        groups: dict[tuple[ir.Value, bool, np.dtype[Any]], list[_Linear]] = {}
        for node in list(model.graph):
            linear = _linear(node)
            if linear is not None and _reaches_attention(linear.result):
                groups.setdefault((linear.x, linear.bias is not None, linear.weight.dtype), []).append(linear)
        joined = [group for group in groups.values() if len(group) > 1]
        for group in joined:
            _join(editor, group)
        notes = (f"{sum(map(len, joined))} products as {len(joined)}",) if joined else ()
        return PassResult(model, editor.modified, notes=notes)


@dataclass(frozen=True, slots=True)
class _Linear:
    """x times a constant matrix [k, n], plus a constant [n] or none. `last` is the node that computes `result`."""

    product: ir.Node
    x: ir.Value
    weight: NDArray[Any]
    bias: NDArray[Any] | None
    last: ir.Node

    @property
    def result(self) -> ir.Value:
        """The product, with the bias added."""
        return self.last.outputs[0]


def _linear(node: ir.Node) -> _Linear | None:
    if not is_op(node, "MatMul") or node.inputs[0] is None:
        return None
    weight, shape = array_of(node.inputs[1]), dims(node.outputs[0])
    if weight is None or weight.ndim != 2 or shape is None or len(shape) < 2 or len(dims(node.inputs[0]) or ()) < 2:
        return None
    add = only_use(node.outputs[0])
    if add is not None and is_op(add, "Add"):
        bias = array_of(next((value for value in add.inputs if value is not node.outputs[0]), None))
        if bias is not None and bias.shape == (weight.shape[1],) and dims(add.outputs[0]) == shape:
            return _Linear(node, node.inputs[0], weight, bias, add)
    return _Linear(node, node.inputs[0], weight, None, node)


def _reaches_attention(value: ir.Value) -> bool:
    """Whether `value` is used only as q, k or v of attention, after Reshape and Transpose at most."""
    while True:
        reader = only_use(value)
        if reader is None:
            return False
        if is_custom(reader, "Attention", "AttentionMasked"):
            return any(operand is value for operand in reader.inputs[:3])
        if not is_op(reader, "Reshape", "Transpose") or reader.inputs[0] is not value:
            return False
        value = reader.outputs[0]


def _join(editor: Editor, group: list[_Linear]) -> None:
    """Replace the products of `group` by slices of one product, inserted at the first."""
    first, origin = group[0], [node for linear in group for node in dict.fromkeys((linear.product, linear.last))]
    shape, dtype = dims(first.product.outputs[0]), first.product.outputs[0].dtype
    assert shape is not None
    widths = [linear.weight.shape[1] for linear in group]
    joined = (*shape[:-1], sum(widths))
    name = f"{first.product.name}.joined"
    weight = editor.constant(np.concatenate([linear.weight for linear in group], axis=1), f"{name}.weight")
    value = editor.insert(
        first.product, "MatMul", [first.x, weight], shape=joined, dtype=dtype, name=name, output=name, origin=origin
    )
    biases = [linear.bias for linear in group if linear.bias is not None]
    if biases:
        bias = editor.constant(np.concatenate(biases), f"{name}.bias")
        value = editor.insert(
            first.product,
            "Add",
            [value, bias],
            shape=joined,
            dtype=dtype,
            name=f"{name}.add",
            output=f"{name}.sum",
            origin=origin,
        )
    parts = list(_parts(editor, first.product, value, widths, name))
    for linear, part in zip(group, parts, strict=True):
        editor.swap(linear.last, part)


def _parts(editor: Editor, before: ir.Node, value: ir.Value, widths: list[int], name: str) -> Iterator[ir.Value]:
    """Slices of `widths` columns of `value`, in order."""
    shape = dims(value)
    assert shape is not None
    start = 0
    axes = editor.constant(np.array([len(shape) - 1], np.int64), f"{name}.axis")
    for width in widths:
        ends = [editor.constant(np.array([bound], np.int64), f"{name}.at") for bound in (start, start + width)]
        yield editor.insert(
            before,
            "Slice",
            [value, *ends, axes],
            shape=(*shape[:-1], width),
            dtype=value.dtype,
            name=f"{name}.part",
            output=f"{name}.part",
        )
        start += width
