"""Tensors seen through operators that only move elements, and the order of axes that all consumers of a result want."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir
from tvm import relax

from graphopt.targets.common.converters.base import Context, Inputs, Outputs, shape_of
from graphopt.targets.gpu.kernels.views import View

_RESHAPES = ("relax.reshape", "relax.squeeze", "relax.expand_dims", "relax.flatten")


def seen_through(c: Context, x: relax.Expr) -> tuple[relax.Expr, View]:
    """The tensor that `x` views by transposes, reshapes and slices, and how; `x` itself if it is no such view."""
    own = shape_of(x)
    moves: list[Callable[[View], View]] = []
    while (step := _move(c, x)) is not None:
        x, move = step
        moves.insert(0, move)
    view = View.whole(shape_of(x))
    for move in moves:
        view = move(view)
    assert view.shape == own
    return x, view


def _move(c: Context, x: relax.Expr) -> tuple[relax.Expr, Callable[[View], View]] | None:
    shape = shape_of(x)
    if 0 in shape:
        return None
    if (permutation := _permutation(c, x)) is not None:
        source, order = permutation
        return source, lambda view: view.permuted(order)
    if (bound := next((call for name in _RESHAPES if (call := _call(c, x, name)) is not None), None)) is not None:
        return bound.args[0], lambda view: view.reshaped(shape)
    bound = _call(c, x, "relax.strided_slice")
    starts = None if bound is None else _starts(bound, shape)
    return None if bound is None or starts is None else (bound.args[0], lambda view: view.sliced(starts, shape))


def _starts(bound: relax.Call, shape: Sequence[int]) -> list[int] | None:
    """Where a slice with step 1 begins on every axis; None for another kind of slice."""
    axes, begin, end, *strides = ([int(each.value) for each in given] for given in bound.args[1:])
    source = shape_of(bound.args[0])
    if strides and any(stride != 1 for stride in strides[0]):
        return None
    starts = [0] * len(shape)
    for axis, first, last in zip(axes, begin, end, strict=True):
        first, last = (each + source[axis] if each < 0 else each for each in (first, min(last, source[axis])))
        starts[axis] = first
        if last - first != shape[axis]:
            return None
    return starts


def _permutation(c: Context, x: relax.Expr) -> tuple[relax.Expr, list[int]] | None:
    """The tensor that `x` is a transpose of, and the order of its axes; None if it is none."""
    bound = _call(c, x, "relax.permute_dims")
    if bound is None:
        return None
    rank = len(shape_of(x))
    axes = bound.attrs.axes
    return bound.args[0], list(reversed(range(rank))) if axes is None else [int(axis) % rank for axis in axes]


def _call(c: Context, x: relax.Expr, operator: str) -> relax.Call | None:
    bound = c.builder.lookup_binding(x) if isinstance(x, relax.Var) else None
    return bound if isinstance(bound, relax.Call) and str(getattr(bound.op, "name", "")) == operator else None


def wanted_order(node: ir.Node, rank: int) -> list[int] | None:
    """The permutation that all consumers of a node's output apply; None if they are no transposes, or differ."""
    value = node.outputs[0]
    readers = [usage.node for usage in value.uses()]
    if not readers or value.is_graph_output() or any(r.op_type != "Transpose" or r.domain for r in readers):
        return None
    orders = {tuple(_order(reader, rank)) for reader in readers}
    return list(orders.pop()) if len(orders) == 1 else None


def _order(node: ir.Node, rank: int) -> Sequence[int]:
    permutation = node.attributes.get_ints("perm", None)
    return list(reversed(range(rank))) if permutation is None else [int(axis) % rank for axis in permutation]


def transpose(c: Context, inputs: Inputs) -> Outputs:
    """Transpose; one that undoes another is the operand of that one."""
    order = _order(c.node, len(shape_of(inputs[0])))
    before = _permutation(c, inputs[0])
    if before is not None and [before[1][axis] for axis in order] == sorted(order):
        return before[0]
    return c.builder.emit(relax.op.permute_dims(inputs[0], order))
