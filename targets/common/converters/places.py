"""Positions of extremes along an axis: ArgMax, ArgMin and Hardmax."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tvm import te, tirx
from tvm.ir import Expr

from graphopt.targets.common.converters.base import (
    FLOATS,
    OPAQUE,
    Context,
    Converter,
    Inputs,
    Outputs,
    dtype_of,
    shape_of,
)


def arg_extreme(largest: bool) -> Converter:
    """ArgMax and ArgMin of floats: TVM's starts at the lowest finite number, and finds no place among infinities."""

    def convert(c: Context, inputs: Inputs) -> Outputs:
        shape = shape_of(inputs[0])
        if dtype_of(inputs[0]) not in FLOATS or not shape or 0 in shape:
            return NotImplemented
        axis = c.integer("axis") % len(shape)
        keep, last = bool(c.integer("keepdims", 1)), bool(c.integer("select_last_index"))

        def compute(v: te.Tensor) -> te.Tensor:
            places = _places(v, axis, largest, last)

            def position(*i: Expr) -> Expr:
                return places(*(i[:axis] + i[axis + 1 :] if keep else i)).astype("int64")

            return te.compute(c.out_shape, position, name="place")

        return c.te("arg_extreme", compute, inputs[0], pattern=OPAQUE)

    return convert


def hardmax(c: Context, inputs: Inputs) -> Outputs:
    """1 at the first of the largest elements along an axis, 0 elsewhere."""
    shape, dtype = shape_of(inputs[0]), dtype_of(inputs[0])
    if dtype not in FLOATS or not shape or 0 in shape:
        return NotImplemented
    axis = c.integer("axis", -1) % len(shape)

    def compute(v: te.Tensor) -> te.Tensor:
        places = _places(v, axis, largest=True, last=False)

        def chosen(*i: Expr) -> Expr:
            hit = tirx.EQ(places(*i[:axis], *i[axis + 1 :]), i[axis].astype("int32"))
            return tirx.Select(hit, tirx.const(1, dtype), tirx.const(0, dtype))

        return te.compute(shape, chosen, name="chosen")

    return c.te("hardmax", compute, inputs[0], pattern=OPAQUE)


def _places(v: te.Tensor, axis: int, largest: bool, last: bool) -> te.Tensor:
    """Position of the extreme along `axis`, the first or last of equal ones; NaN only where it comes first."""
    shape = tuple(int(extent) for extent in v.shape)

    def combine(a: Sequence[Expr], b: Sequence[Expr]) -> tuple[Expr, Expr]:
        further = b[1] > a[1] if largest else b[1] < a[1]
        level = tirx.all(tirx.EQ(b[1], a[1]), b[0] > a[0] if last else b[0] < a[0])
        wins = tirx.any(a[0] < 0, tirx.all(b[0] >= 0, tirx.any(further, level)))
        return tirx.Select(wins, b[0], a[0]), tirx.Select(wins, b[1], a[1])

    def start(place: str, value: str) -> tuple[Expr, Expr]:
        return tirx.const(-1, place), tirx.const(-math.inf if largest else math.inf, value)

    inner = te.reduce_axis((0, shape[axis]), name="r")

    def element(*i: Expr) -> Any:
        index = (*i[:axis], inner, *i[axis:])
        return te.comm_reducer(combine, start, name="place")((inner.var.astype("int32"), v(*index)), axis=inner)

    places, _ = te.compute((*shape[:axis], *shape[axis + 1 :]), element, name="places")
    return places
