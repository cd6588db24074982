"""Batch the matrix products of a tensor's parts with one matrix into one product of the tensor."""

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
"""Most rows of a product for which one batched product is no slower than separate ones, for matrices of 256 x 256 and
1024 x 1024 on two threads: it takes a quarter of the time with 1 row, 0.75 to 0.96 of it with 16, up to 1.25 with 32.
"""

SHARE = 0.5
"""Smallest share of a tensor's rows that its parts must cover."""

ALL = 11
"""Rows of a product from which on the parts must cover all rows: with 8, separate products of three quarters of them
are as fast.
"""


@dataclass(frozen=True)
class BatchProducts(Pass):
    """Products of parts of one tensor, a few rows each, with one constant matrix become one, and parts are taken of it.

        a = Gather<axis = 0>(x, 0)               p = Add(MatMul(x, w), c)
        b = Gather<axis = 0>(x, 1)         ->    y = Gather<axis = 0>(p, 0)
        y = Gemm(a, w, c)  z = Gemm(b, w, c)     z = Gather<axis = 0>(p, 1)

    Exported recurrent layers are unrolled in this way, and read the matrix once per step instead of once. The parts are
    results of Gather, Slice and Split, also with a Squeeze after it, along other axes than the one that is multiplied.
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
    """`node` multiplies the part of `x` that the chain of nodes `parts` extracts by `weight`, and adds `bias`."""

    node: ir.Node
    parts: tuple[ir.Node, ...]
    x: ir.Value
    weight: ir.Value
    bias: ir.Value | None
    transposed: bool

    @property
    def key(self) -> tuple[object, ...]:
        """Products of equal keys can be batched."""
        return self.x, self.weight, self.bias, self.transposed

    @property
    def rows(self) -> int:
        """Rows of the left operand."""
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
    extracted = _parts(a)
    if extracted is None:
        return None
    parts, x = extracted
    transposed = gemm and bool(node.attributes.get_int("transB", 0))
    return _Product(node, parts, x, weight, bias, transposed)


def _plain(node: ir.Node, bias: ir.Value | None, columns: int) -> bool:
    """Whether a Gemm scales and transposes no left operand, and adds the same constant to every row."""
    factors = node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)
    transposed = node.attributes.get_int("transA", 0)
    if factors != (1.0, 1.0) or transposed:
        return False
    return bias is None or (array_of(bias) is not None and dims(bias) in ((), (1,), (columns,), (1, columns)))


def _parts(value: ir.Value) -> tuple[tuple[ir.Node, ...], ir.Value] | None:
    """(nodes that extract `value` from a tensor with the same last axis, that tensor); None if it is no part of one."""
    parts: list[ir.Node] = []
    node = value.producer()
    if node is not None and is_op(node, "Squeeze") and _keeps_last(node):
        parts, node = [node], None if node.inputs[0] is None else node.inputs[0].producer()
    if node is None or not is_op(node, "Gather", "Slice", "Split") or not _keeps_last(node):
        return None
    source = node.inputs[0]
    if source is None or any(array_of(operand) is None for operand in node.inputs[1:] if operand is not None):
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
    """Whether the products are several, small, and cover enough rows of their tensor."""
    total = math.prod((dims(group[0].x) or (0,))[:-1])
    rows = [product.rows for product in group]
    share = min(1.0, max(SHARE, max(rows) / ALL))
    return len(group) > 1 and max(rows) <= FEW and sum(rows) >= share * total


def _batch(editor: Editor, group: list[_Product]) -> None:
    """Insert one product before the first part, and replace each product by its part of the result."""
    first = group[0]
    x, before, name = first.x, first.parts[0], f"{first.node.name}.batched"
    shape, dtype = dims(x), first.node.outputs[0].dtype
    matrix = array_of(first.weight)
    assert shape is not None
    assert matrix is not None
    weight = editor.constant(matrix.T, f"{name}.weight") if first.transposed else first.weight
    product_shape = (*shape[:-1], matrix.shape[0 if first.transposed else 1])
    origin = [product.node for product in group]
    value = editor.insert(
        before, "MatMul", [x, weight], shape=product_shape, dtype=dtype, name=name, output=name, origin=origin
    )
    if first.bias is not None:
        bias = first.bias
        if len(dims(bias) or ()) == 2:
            rows = array_of(bias)
            assert rows is not None
            bias = editor.constant(rows[0], f"{name}.bias")
        added = f"{name}.sum"
        value = editor.insert(
            before, "Add", [value, bias], shape=product_shape, dtype=dtype, name=added, output=added, origin=origin
        )
    for product in group:
        part = value
        for node, read in zip(product.parts, _read(product), strict=True):
            part = _again(editor, node, read, part, product_shape[-1])
        editor.swap(product.node, part)


def _read(product: _Product) -> Iterator[ir.Value]:
    """For each part, the output that the next part or the product reads."""
    for node in (*product.parts[1:], product.node):
        assert node.inputs[0] is not None
        yield node.inputs[0]


def _again(editor: Editor, node: ir.Node, output: ir.Value, value: ir.Value, columns: int) -> ir.Value:
    """Extract from `value` the part that `node` extracts as its `output`; `value` has `columns` columns."""
    shape = dims(output)
    assert shape is not None
    op_type, inputs = node.op_type, list(node.inputs[1:])
    attributes = {attribute.name: attribute.value for attribute in node.attributes.values()}
    if op_type == "Split":
        axis = attributes.get("axis", 0)
        start = sum((dims(part) or ())[axis] for part in node.outputs[: list(node.outputs).index(output)])
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
