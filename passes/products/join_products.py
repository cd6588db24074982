"""Compute the products that attention takes from one tensor as one product."""

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

    A target that reads attention's operands where they lie pays nothing for the Split, reads x once, and has one large
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
        joined = [found for found in groups.values() if len(found) > 1]
        for found in joined:
            _join(editor, found)
        notes = (f"{sum(map(len, joined))} products as {len(joined)}",) if joined else ()
        return PassResult(model, editor.modified, notes=notes)


@dataclass(frozen=True, slots=True)
class _Linear:
    """x times a constant matrix [k, n], and a constant [n] added, or none. `last` is the node that makes `result`."""

    product: ir.Node
    x: ir.Value
    weight: NDArray[Any]
    bias: NDArray[Any] | None
    last: ir.Node

    @property
    def result(self) -> ir.Value:
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
    """Whether all that happens to it is to be moved and then to be q, k or v."""
    while True:
        reader = only_use(value)
        if reader is None:
            return False
        if is_custom(reader, "Attention", "AttentionMasked"):
            return any(each is value for each in reader.inputs[:3])
        if not is_op(reader, "Reshape", "Transpose") or reader.inputs[0] is not value:
            return False
        value = reader.outputs[0]


def _join(editor: Editor, found: list[_Linear]) -> None:
    """Put one product in place of the first one."""
    first, origin = found[0], [each for linear in found for each in dict.fromkeys((linear.product, linear.last))]
    shape, dtype = dims(first.product.outputs[0]), first.product.outputs[0].dtype
    assert shape is not None
    widths = [linear.weight.shape[1] for linear in found]
    joined = (*shape[:-1], sum(widths))
    name = f"{first.product.name}.joined"
    weight = editor.constant(np.concatenate([linear.weight for linear in found], axis=1), f"{name}.weight")
    value = editor.insert(
        first.product, "MatMul", [first.x, weight], shape=joined, dtype=dtype, name=name, output=name, origin=origin
    )
    biases = [linear.bias for linear in found if linear.bias is not None]
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
    for linear, part in zip(found, parts, strict=True):
        editor.swap(linear.last, part)


def _parts(editor: Editor, before: ir.Node, value: ir.Value, widths: list[int], name: str) -> Iterator[ir.Value]:
    shape = dims(value)
    assert shape is not None
    start = 0
    axes = editor.constant(np.array([len(shape) - 1], np.int64), f"{name}.axis")
    for width in widths:
        ends = [editor.constant(np.array([each], np.int64), f"{name}.at") for each in (start, start + width)]
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
