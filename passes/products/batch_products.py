"""Compute the products of a tensor's parts with one matrix as one product of the tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.graph.edit import Editor, array_of, dims, is_op, scalar_of
from graphopt.pipeline.pass_base import Pass, PassResult

FEW = 16
"""Rows of a product up to which all parts of a tensor are multiplied no slower at once, by matrices of 256 x 256 and
1024 x 1024 on two threads: in a quarter of the time with 1 row, in 0.75 to 0.96 of it with 16, in up to 1.25 with 32.
"""

SHARE = 0.5
"""Of the rows of a tensor, what its parts must have at least."""

ALL = 11
"""Rows of a product from which on they must have all of them: with 8, three quarters are multiplied as fast apart."""


@dataclass(frozen=True)
class BatchProducts(Pass):
    """Products of parts of one tensor, a few rows each, with one constant matrix become one, and parts are taken of it.

        a = Gather<axis = 0>(x, 0)               p = Add(MatMul(x, w), c)
        b = Gather<axis = 0>(x, 1)         ->    y = Gather<axis = 0>(p, 0)
        y = Gemm(a, w, c)  z = Gemm(b, w, c)     z = Gather<axis = 0>(p, 1)

    Exported recurrent layers are unrolled so: the matrix is read once for every step instead of once. The parts are
    those of Gather, Slice and Split, with a Squeeze behind it, along other axes than the one that is multiplied.
    """

    name: ClassVar[str] = "batch-products"

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite the main graph."""
        editor = Editor(model, self.name)
        groups: dict[tuple[object, ...], list[_Product]] = {}
        for node in model.graph:
            product = _product(node)
            if product is not None:
                groups.setdefault(product.key, []).append(product)
        batched = [group for group in groups.values() if _pays(group)]
        order = {node: number for number, node in enumerate(model.graph)}
        for group in batched:
            _batch(editor, sorted(group, key=lambda product: order[product.parts[0]]))
        notes = (f"{sum(map(len, batched))} products as {len(batched)}",) if batched else ()
        return PassResult(model, editor.modified, notes=notes)


@dataclass(frozen=True, slots=True)
class _Product:
    """`node` multiplies what `parts` take of `x`, one after the other, with `weight`, and adds `bias`."""

    node: ir.Node
    parts: tuple[ir.Node, ...]
    x: ir.Value
    weight: ir.Value
    bias: ir.Value | None
    transposed: bool

    @property
    def key(self) -> tuple[object, ...]:
        return self.x, self.weight, self.bias, self.transposed

    @property
    def rows(self) -> int:
        return math.prod((dims(self.node.inputs[0]) or ())[:-1])


def _product(node: ir.Node) -> _Product | None:
    gemm = is_op(node, "Gemm")
    if not gemm and not is_op(node, "MatMul"):
        return None
    a, weight, bias = (*node.inputs, None)[:3]
    matrix, result = array_of(weight), dims(node.outputs[0])
    if a is None or weight is None or matrix is None or matrix.ndim != 2 or result is None or dims(a) is None:
        return None
    if gemm and not _plain(node, bias, result[-1]):
        return None
    found = _parts(a)
    if found is None:
        return None
    parts, x = found
    transposed = gemm and bool(node.attributes.get_int("transB", 0))
    return _Product(node, parts, x, weight, bias, transposed)


def _plain(node: ir.Node, bias: ir.Value | None, columns: int) -> bool:
    """Whether a Gemm is the product of its operand as it is, and adds the same to every row."""
    factors = node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)
    transposed = node.attributes.get_int("transA", 0)
    if factors != (1.0, 1.0) or transposed:
        return False
    return bias is None or (array_of(bias) is not None and dims(bias) in ((), (1,), (columns,), (1, columns)))


def _parts(value: ir.Value) -> tuple[tuple[ir.Node, ...], ir.Value] | None:
    """The nodes that take `value` of a larger tensor of the same last axis, and that tensor."""
    parts: list[ir.Node] = []
    node = value.producer()
    if node is not None and is_op(node, "Squeeze") and _keeps_last(node):
        parts, node = [node], None if node.inputs[0] is None else node.inputs[0].producer()
    if node is None or not is_op(node, "Gather", "Slice", "Split") or not _keeps_last(node):
        return None
    source = node.inputs[0]
    if source is None or any(array_of(each) is None for each in node.inputs[1:] if each is not None):
        return None
    return (node, *parts), source


def _keeps_last(node: ir.Node) -> bool:
    """Whether a node leaves the last axis of its operand as it is."""
    shape, result = dims(node.inputs[0]), dims(node.outputs[0])
    if not shape or not result or shape[-1] != result[-1]:
        return False
    if is_op(node, "Squeeze", "Slice"):
        place = 1 if is_op(node, "Squeeze") else 3
        axes = array_of(node.inputs[place]) if len(node.inputs) > place else None
        return axes is not None and all(int(axis) % len(shape) != len(shape) - 1 for axis in np.ravel(axes))
    if is_op(node, "Gather") and scalar_of(node.inputs[1]) is None:
        return False
    return node.attributes.get_int("axis", 0) % len(shape) != len(shape) - 1


def _pays(group: list[_Product]) -> bool:
    whole = math.prod((dims(group[0].x) or (0,))[:-1])
    rows = [product.rows for product in group]
    share = min(1.0, max(SHARE, max(rows) / ALL))
    return len(group) > 1 and max(rows) <= FEW and sum(rows) >= share * whole


def _batch(editor: Editor, group: list[_Product]) -> None:
    """One product in front of the first part, and the parts of it in place of the products."""
    first = group[0]
    x, before, name = first.x, first.parts[0], f"{first.node.name}.batched"
    shape, dtype = dims(x), first.node.outputs[0].dtype
    matrix = array_of(first.weight)
    assert shape is not None
    assert matrix is not None
    weight = editor.constant(matrix.T, f"{name}.weight") if first.transposed else first.weight
    whole = (*shape[:-1], matrix.shape[0 if first.transposed else 1])
    origin = [product.node for product in group]
    value = editor.insert(
        before, "MatMul", [x, weight], shape=whole, dtype=dtype, name=name, output=name, origin=origin
    )
    if first.bias is not None:
        bias = first.bias
        if len(dims(bias) or ()) == 2:
            rows = array_of(bias)
            assert rows is not None
            bias = editor.constant(rows[0], f"{name}.bias")
        added = f"{name}.sum"
        value = editor.insert(
            before, "Add", [value, bias], shape=whole, dtype=dtype, name=added, output=added, origin=origin
        )
    for product in group:
        part = value
        for node, read in zip(product.parts, _read(product), strict=True):
            part = _again(editor, node, read, part, whole[-1])
        editor.swap(product.node, part)


def _read(product: _Product) -> Iterator[ir.Value]:
    """Of each of its parts, the output that the next one or the product reads."""
    for node in (*product.parts[1:], product.node):
        assert node.inputs[0] is not None
        yield node.inputs[0]


def _again(editor: Editor, node: ir.Node, output: ir.Value, value: ir.Value, columns: int) -> ir.Value:
    """What `node` does for its `output`, done to `value`."""
    shape = dims(output)
    assert shape is not None
    op_type, inputs = node.op_type, list(node.inputs[1:])
    attributes = {attribute.name: attribute.value for attribute in node.attributes.values()}
    if op_type == "Split":
        axis = attributes.get("axis", 0)
        start = sum((dims(each) or ())[axis] for each in node.outputs[: list(node.outputs).index(output)])
        numbers = (start, start + shape[axis], axis)
        inputs = [editor.constant(np.array([number], np.int64), f"{node.name}.at") for number in numbers]
        op_type, attributes = "Slice", {}
    return editor.insert(
        node,
        op_type,
        [value, *inputs],
        attributes,
        shape=(*shape[:-1], columns),
        dtype=value.dtype,
        name=f"{node.name}.batched",
        output=f"{output.name}.batched",
        origin=[node],
    )
