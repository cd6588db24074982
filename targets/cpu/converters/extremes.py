"""Maxima and minima along the last axes on CPUs: ReduceMax, ReduceMin, GlobalMaxPool."""

from __future__ import annotations

import math

from tvm import relax

from graphopt.targets.common.converters.base import REDUCTION, Context, Converter, Inputs, Outputs, dtype_of, shape_of
from graphopt.targets.common.converters.reductions import chosen_axes, extreme
from graphopt.targets.cpu.kernels import extremes

_DTYPES = ("float32", "float64", "int32", "int64", "int8", "uint8")


def along_rows(largest: bool) -> Converter:
    """ReduceMax or ReduceMin over the last axes; other axes take the converter that all targets share."""
    other = extreme(largest)

    def convert(c: Context, inputs: Inputs) -> Outputs:
        shape = shape_of(inputs[0])
        axes = chosen_axes(c, len(shape))
        last = list(range(len(shape) - len(axes or ()), len(shape)))
        if dtype_of(inputs[0]) not in _DTYPES or 0 in shape or not axes or axes != last:
            return other(c, inputs)
        return _rows(c, inputs[0], len(axes), largest)

    return convert


def global_max_pool(c: Context, inputs: Inputs) -> Outputs:
    """The largest element of every plane."""
    shape = shape_of(inputs[0])
    if dtype_of(inputs[0]) not in _DTYPES or 0 in shape or len(shape) < 3:
        return NotImplemented
    return _rows(c, inputs[0], len(shape) - 2, True)


def ends(c: Context, x: relax.Expr) -> relax.Expr:
    """[2], the largest of x and the largest of -x, in one kernel."""
    return c.te("ends", lambda v: extremes.ends(v, c.machine), x, pattern=REDUCTION)


def _rows(c: Context, x: relax.Expr, count: int, largest: bool) -> relax.Expr:
    """The extreme over the last `count` axes, which are contiguous in memory."""
    shape = shape_of(x)
    if count > 1:
        x = c.reshape(x, (*shape[:-count], math.prod(shape[-count:])))
    y = c.te("extreme", lambda v: extremes.compute(v, largest, c.machine), x, pattern=REDUCTION)
    return c.reshape(y, c.out_shape)
