"""What shape rules read from a node: static extents, dtypes and attributes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

Extents = tuple[int, ...]
Typed = tuple[ir.DataType, Extents]
Rule = Callable[[ir.Node], Sequence[Typed]]
"""(dtype, extents) of the outputs of a node; raises Unknown."""


class Unknown(Exception):
    """An operand whose shape or type is open, or a form of the operator that is not described."""


def operand(node: ir.Node, index: int) -> ir.Value | None:
    """The operand at `index`; None where the node has none there."""
    return node.inputs[index] if index < len(node.inputs) else None


def extents(node: ir.Node, index: int) -> Extents:
    """Static extents of the operand at `index`; raises Unknown."""
    value = operand(node, index)
    if value is None or value.shape is None or not value.shape.is_static():
        raise Unknown
    return tuple(value.shape.numpy())


def kind_of(node: ir.Node, index: int) -> ir.DataType:
    """Dtype of the operand at `index`; raises Unknown."""
    value = operand(node, index)
    if value is None or value.dtype is None:
        raise Unknown
    return value.dtype


def integer(node: ir.Node, name: str, default: int | None = None) -> int:
    """The integer attribute `name`; raises Unknown where it is absent and has no default."""
    number = node.attributes.get_int(name, default)
    if number is None:
        raise Unknown
    return int(number)
