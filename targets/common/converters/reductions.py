"""Reductions along axes, their results for no elements, and extremes that handle infinities."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax, te, tirx
from tvm.ir import Expr

from graphopt.targets.common.converters.base import (
    FLOATS,
    REDUCTION,
    Context,
    Converter,
    Inputs,
    Outputs,
    dtype_of,
    elementwise_map,
    shape_of,
)
from graphopt.targets.common.converters.index import constant, known

_OF_ONE: dict[str, Callable[[relax.Expr], relax.Expr]] = {
    "ReduceL1": relax.op.abs,
    "ReduceL2": lambda x: relax.op.sqrt(relax.op.multiply(x, x)),  # ONNX Runtime's squares overflow too
    "ReduceLogSum": relax.op.log,
    "ReduceSumSquare": relax.op.square,
}
"""Reductions that change a single element, as functions of that element."""


def alone(c: Context, x: relax.Expr) -> Outputs:
    """Reduce each element by itself where the node has no axes and `noop_with_empty_axes`; else NotImplemented."""
    axes = _axes(c)
    if axes is None or len(axes) or not c.integer("noop_with_empty_axes"):
        return NotImplemented
    return _OF_ONE.get(c.node.op_type, lambda value: value)(x)


def reduction(of_nothing: float) -> Converter:
    """A reduction over no elements is a constant, one over no axes elementwise. All others are TVM's."""

    def convert(c: Context, inputs: Inputs) -> Outputs:
        x = inputs[0]
        dtype = dtype_of(x)
        if (result := alone(c, x)) is not NotImplemented:
            return result
        if 0 in shape_of(x):
            value = False if dtype == "bool" and of_nothing < 0 else of_nothing
            if np.dtype(dtype).kind in "iu" and math.isinf(value):
                limits = np.iinfo(dtype)
                value = limits.max if value > 0 else limits.min
            return known(np.full(c.out_shape, value, np.dtype(dtype)))
        return NotImplemented

    return convert


def mean(c: Context, inputs: Inputs) -> Outputs:
    """ReduceMean of integers: the sum in int64, divided towards zero; of nothing 0."""
    result = reduction(0)(c, inputs)
    (x, dtype, axes) = inputs[0], dtype_of(inputs[0]), _axes(c)
    if result is not NotImplemented or dtype not in ("int32", "int64") or axes is None:
        return result
    rank = len(shape_of(x))
    places = [int(axis) % rank for axis in axes] if len(axes) else list(range(rank))
    wide = c.builder.emit(relax.op.astype(x, "int64"))
    total = c.builder.emit(relax.op.sum(wide, places, keepdims=bool(c.integer("keepdims", 1))))
    count = tirx.const(math.prod(shape_of(x)[axis] for axis in places), "int64")
    return elementwise_map(c, lambda value: tirx.truncdiv(value, count).astype(dtype), total)


def extreme(largest: bool) -> Converter:
    """ReduceMax and ReduceMin: TVM's maximum starts at the lowest finite number, and has no booleans."""
    of_nothing = reduction(-math.inf if largest else math.inf)

    def convert(c: Context, inputs: Inputs) -> Outputs:
        x = inputs[0]
        shape, dtype = shape_of(x), dtype_of(x)
        places = chosen_axes(c, len(shape))
        if (result := alone(c, x)) is not NotImplemented:
            return result
        if 0 in shape:
            return of_nothing(c, inputs)
        if dtype not in (*FLOATS, "bool") or not places:
            return NotImplemented
        keep = bool(c.integer("keepdims", 1))
        working = "int8" if dtype == "bool" else dtype
        low = 0 if working == "int8" else -math.inf
        high = 1 if working == "int8" else math.inf

        def compute(v: te.Tensor) -> te.Tensor:
            reducer = te.comm_reducer(
                lambda a, b: tirx.max(a, b) if largest else tirx.min(a, b),
                lambda t: tirx.const(low if largest else high, t),
                name="extreme",
            )
            inner = [te.reduce_axis((0, shape[axis]), name=f"r{axis}") for axis in places]

            def element(*i: Expr) -> Expr:
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


def chosen_axes(c: Context, rank: int) -> list[int] | None:
    """The axes that a reduction is over, in order, counted from the front; None where they are not constant."""
    axes = _axes(c)
    if axes is None:
        return None
    if not len(axes):
        return [] if c.integer("noop_with_empty_axes") else list(range(rank))
    return sorted(int(axis) % rank for axis in axes)


def _axes(c: Context) -> NDArray[Any] | tuple[int, ...] | None:
    if len(c.node.inputs) < 2 or c.node.inputs[1] is None:
        return c.integers("axes")
    return constant(c, 1)
