"""Sums along axes and operators on them: means, norms, and global pools.

A sum of fp16 or bf16 is kept in single precision and rounded once, as in ONNX Runtime. On CPUs a long sum of single
precision is kept in double precision, which costs little beside reading the elements: its error is that of one
rounding, however lanes of vectors share it. GPUs share a sum among so many threads that single precision is enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tvm import te, tirx
from tvm.ir import Expr

from graphopt.targets.common.converters.base import (
    FLOATS,
    HALF_DTYPES,
    OPAQUE,
    REDUCTION,
    Context,
    Converter,
    Inputs,
    Outputs,
    dtype_of,
    shape_of,
)
from graphopt.targets.common.converters.reductions import chosen_axes
from graphopt.targets.common.kernels import math as fast
from graphopt.targets.common.kernels.blocks import const

Element = Callable[[Expr], Expr]


@dataclass(frozen=True, slots=True)
class _Kind:
    """The term of each element, and the result from the sum and the number of summed elements."""

    term: Element = lambda x: x
    result: Callable[[Expr, int], Expr] = lambda total, _: total


def _mean(total: Expr, count: int) -> Expr:
    return total / const(count, total.ty.dtype)


_KINDS = {
    "GlobalAveragePool": _Kind(result=_mean),
    "ReduceL1": _Kind(tirx.abs),
    "ReduceL2": _Kind(lambda x: x * x, lambda total, _: tirx.sqrt(total)),
    "ReduceLogSum": _Kind(result=lambda total, _: tirx.log(total)),
    "ReduceMean": _Kind(result=_mean),
    "ReduceSum": _Kind(),
    "ReduceSumSquare": _Kind(lambda x: x * x),
}


Accumulator = Callable[[str, int], str]
"""The dtype in which a sum is kept, of the dtype and the count of its terms."""


def total(accumulator: Accumulator = lambda dtype, _: dtype) -> Converter:
    """A node of `_KINDS`, or ReduceLogSumExp, of floats along constant axes."""
    return partial(_total, accumulator)


def _total(accumulator: Accumulator, c: Context, inputs: Inputs) -> Outputs:
    x = inputs[0]
    shape, dtype = shape_of(x), dtype_of(x)
    if c.node.op_type == "GlobalAveragePool":
        axes: list[int] | None = list(range(2, len(shape)))
    else:
        axes = chosen_axes(c, len(shape))
    if dtype not in (*FLOATS, *HALF_DTYPES) or 0 in shape or not axes:
        return NotImplemented
    keep = c.node.op_type == "GlobalAveragePool" or bool(c.integer("keepdims", 1))
    count = math.prod(shape[axis] for axis in axes)
    wide = "float32" if dtype in HALF_DTYPES else dtype
    kept = accumulator(wide, count)

    def along(name: str, combine: Callable[..., Expr], term: Callable[..., Expr]) -> te.Tensor:
        """A reduction of the terms; `term` takes the index of the element and that of its result."""
        inner = {axis: te.reduce_axis((0, shape[axis]), f"r{axis}") for axis in axes}

        def element(*i: Expr) -> Expr:
            outer = iter(i)
            index = []
            for axis in range(len(shape)):
                index.append(inner[axis] if axis in inner else next(outer))
                if axis in inner and keep:
                    next(outer)
            return combine(term(index, i), axis=list(inner.values()))

        return te.compute(c.out_shape, element, name=name)

    def define(v: te.Tensor) -> te.Tensor:
        kind = _KINDS[c.node.op_type]
        sums = along("total", te.sum, lambda index, _: kind.term(v(*index).astype(wide)).astype(kept))
        return te.compute(
            c.out_shape, lambda *i: kind.result(sums(*i).astype(wide), count).astype(dtype), name="result"
        )

    def define_exponentials(v: te.Tensor) -> te.Tensor:
        """log(sum(e^x)) = m + log(sum(e^(x - m))) of the largest element m, or of 0 where that is infinite."""
        top = along("top", te.max, lambda index, _: v(*index).astype(wide))

        def shift(*i: Expr) -> Expr:
            return tirx.Select(tirx.abs(top(*i)) <= tirx.max_value(wide), top(*i), const(0, wide))

        near = te.compute(c.out_shape, shift, name="near")
        sums = along("total", te.sum, lambda index, i: fast.exp(v(*index).astype(wide) - near(*i)).astype(kept))
        return te.compute(
            c.out_shape, lambda *i: (near(*i) + tirx.log(sums(*i).astype(wide))).astype(dtype), name="result"
        )

    if c.node.op_type == "ReduceLogSumExp":
        return c.te("logsumexp", define_exponentials, x, pattern=OPAQUE)
    return c.te(c.node.op_type.lower(), define, x, pattern=REDUCTION)
