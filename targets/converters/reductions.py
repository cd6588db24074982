"""Reductions along axes, with what they give for no elements, and extremes that know infinities."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax, te, tirx

from graphopt.targets.converters.base import FLOATS, OPAQUE, REDUCTION, Context, Converter, dtype_of, shape_of
from graphopt.targets.converters.index import constant, known


def reduction(of_nothing: float) -> Converter:
    """A reduction over no elements is a constant. All others are TVM's."""

    def convert(c: Context, inputs: list[Any]) -> Any:
        x = inputs[0]
        dtype = dtype_of(x)
        if 0 in shape_of(x):
            value = False if dtype == "bool" and of_nothing < 0 else of_nothing
            if np.dtype(dtype).kind in "iu" and math.isinf(value):
                limits = np.iinfo(dtype)
                value = limits.max if value > 0 else limits.min
            return known(np.full(c.out_shape, value, np.dtype(dtype)))
        return NotImplemented

    return convert


def extreme(largest: bool) -> Converter:
    """ReduceMax and ReduceMin: TVM's maximum starts at the lowest finite number, and has no booleans."""
    of_nothing = reduction(-math.inf if largest else math.inf)

    def convert(c: Context, inputs: list[Any]) -> Any:
        x = inputs[0]
        shape, dtype = shape_of(x), dtype_of(x)
        axes = _axes(c)
        if 0 in shape:
            return of_nothing(c, inputs)
        if dtype not in (*FLOATS, "bool") or axes is None or (not len(axes) and c.integer("noop_with_empty_axes")):
            return NotImplemented
        places = sorted(int(axis) % len(shape) for axis in axes) if len(axes) else list(range(len(shape)))
        if not places:
            return NotImplemented
        keep = bool(c.integer("keepdims", 1))
        working = "int8" if dtype == "bool" else dtype
        low = 0 if working == "int8" else -math.inf
        high = 1 if working == "int8" else math.inf

        def compute(v: Any) -> Any:
            reducer = te.comm_reducer(
                lambda a, b: tirx.max(a, b) if largest else tirx.min(a, b),
                lambda t: tirx.const(low if largest else high, t),
                name="extreme",
            )
            inner = [te.reduce_axis((0, shape[axis]), name=f"r{axis}") for axis in places]

            def element(*i: Any) -> Any:
                outer, chosen = iter(i), iter(inner)
                index = []
                for axis in range(len(shape)):
                    if axis in places:
                        index.append(next(chosen))
                        if keep:
                            next(outer)
                    else:
                        index.append(next(outer))
                return reducer(v(*index).astype(working), axis=inner)

            return te.compute(c.out_shape, element, name="extreme")

        y = c.te("extreme", compute, x, pattern=REDUCTION)
        return y if dtype == working else relax.op.astype(y, dtype)

    return convert


def arg_extreme(largest: bool) -> Converter:
    """ArgMax and ArgMin of floats: TVM's starts at the lowest finite number, and finds no place among infinities."""

    def convert(c: Context, inputs: list[Any]) -> Any:
        shape = shape_of(inputs[0])
        if dtype_of(inputs[0]) not in FLOATS or not shape or 0 in shape:
            return NotImplemented
        axis = c.integer("axis") % len(shape)
        keep, last = bool(c.integer("keepdims", 1)), bool(c.integer("select_last_index"))

        def compute(v: Any) -> Any:
            places = _places(v, axis, largest, last)

            def found(*i: Any) -> Any:
                return places(*(i[:axis] + i[axis + 1 :] if keep else i)).astype("int64")

            return te.compute(c.out_shape, found, name="place")

        return c.te("arg_extreme", compute, inputs[0], pattern=OPAQUE)

    return convert


def hardmax(c: Context, inputs: list[Any]) -> Any:
    """1 at the first of the largest elements along an axis, 0 elsewhere."""
    shape, dtype = shape_of(inputs[0]), dtype_of(inputs[0])
    if dtype not in FLOATS or not shape or 0 in shape:
        return NotImplemented
    axis = c.integer("axis", -1) % len(shape)

    def compute(v: Any) -> Any:
        places = _places(v, axis, largest=True, last=False)

        def chosen(*i: Any) -> Any:
            hit = tirx.EQ(places(*i[:axis], *i[axis + 1 :]), i[axis].astype("int32"))
            return tirx.Select(hit, tirx.const(1, dtype), tirx.const(0, dtype))

        return te.compute(shape, chosen, name="chosen")

    return c.te("hardmax", compute, inputs[0], pattern=OPAQUE)


def _places(v: Any, axis: int, largest: bool, last: bool) -> Any:
    """Where the extreme along `axis` is, the first or last of equal ones: a NaN only where it comes first."""
    shape = tuple(int(extent) for extent in v.shape)

    def combine(a: Any, b: Any) -> tuple[Any, Any]:
        further = b[1] > a[1] if largest else b[1] < a[1]
        level = tirx.all(tirx.EQ(b[1], a[1]), b[0] > a[0] if last else b[0] < a[0])
        wins = tirx.any(a[0] < 0, tirx.all(b[0] >= 0, tirx.any(further, level)))
        return tirx.Select(wins, b[0], a[0]), tirx.Select(wins, b[1], a[1])

    def start(place: str, value: str) -> tuple[Any, Any]:
        return tirx.const(-1, place), tirx.const(-math.inf if largest else math.inf, value)

    inner = te.reduce_axis((0, shape[axis]), name="r")

    def element(*i: Any) -> Any:
        index = (*i[:axis], inner, *i[axis:])
        return te.comm_reducer(combine, start, name="place")((inner.var.astype("int32"), v(*index)), axis=inner)

    places, _ = te.compute((*shape[:axis], *shape[axis + 1 :]), element, name="places")
    return places


def _axes(c: Context) -> NDArray[Any] | tuple[int, ...] | None:
    if len(c.node.inputs) < 2 or c.node.inputs[1] is None:
        return c.integers("axes")
    return constant(c, 1)
