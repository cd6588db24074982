"""Pools that TVM lacks.

These are ceil_mode, dilations, integers, MaxPool in double and half precision, and powers (LpPool):

    y[.., p, ..] = reduce over t of x[.., p stride + t dilation - pad, ..]

The extents of the output are those of shape inference; a window that leaves the image covers the part inside.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import te, tirx
from tvm.ir import Expr, GenericConst

from graphopt.targets.common.converters.base import (
    FLOATS,
    HALF_DTYPES,
    REDUCTION,
    Context,
    Converter,
    Inputs,
    Outputs,
    dtype_of,
    shape_of,
)
from graphopt.targets.common.converters.index import known
from graphopt.targets.common.converters.pads import pool_pads


@dataclass(frozen=True, slots=True)
class Pool:
    """A window over x[*outer, *image] that gives [*outer, *out]; `pads` are before each axis of the image."""

    out: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]


def pool(c: Context, inputs: Inputs) -> Outputs:
    """MaxPool without indices and AveragePool, where TVM's do not fit; LpPool."""
    (x,) = inputs
    dtype, kind = dtype_of(x), c.node.op_type
    shape, out, kernel = shape_of(x), c.out_shape, c.integers("kernel_shape")
    rank = len(kernel)
    strides, dilations = c.integers("strides", (1,) * rank), c.integers("dilations", (1,) * rank)
    auto = c.text("auto_pad", "NOTSET") not in ("NOTSET", "")
    fits = dtype == "float32" or (dtype in FLOATS and kind != "MaxPool")
    plain = not c.integer("ceil_mode") and set(dilations) == {1} and rank <= 3 and fits and not auto
    if (plain and kind != "LpPool") or len(c.node.outputs) > 1 or 0 in shape:
        return NotImplemented
    if kind != "MaxPool" and dtype not in (*FLOATS, *HALF_DTYPES):
        return NotImplemented
    begins, ends = pool_pads(c, shape[2:], kernel, strides)
    working = "float32" if dtype in HALF_DTYPES else dtype
    if kind == "MaxPool":
        working = dtype
    # Of nothing but -inf ONNX Runtime makes the lowest number where its vector code runs: in float32 without dilations.
    finite = dtype not in FLOATS or (dtype == "float32" and set(dilations) == {1})
    lowest: Expr = tirx.min_value(dtype) if finite else tirx.const(-math.inf, dtype)
    start, power = (lowest if kind == "MaxPool" else tirx.const(0, working)), c.integer("p", 2)

    largest = te.comm_reducer(lambda a, b: tirx.max(a, b), lambda _: lowest, name="max")

    def value(element: Expr) -> Expr:
        element = element.astype(working)
        if kind != "LpPool":
            return element
        if power in (1, 2):
            return tirx.abs(element) if power == 1 else element * element
        return tirx.power(tirx.abs(element), tirx.const(power, working))

    def compute(v: te.Tensor, count: Any = None) -> te.Tensor:
        window = [te.reduce_axis((0, extent), name=f"k{axis}") for axis, extent in enumerate(kernel)]

        def element(n: Expr, channel: Expr, *place: Expr) -> Expr:
            at = [p * s + k * d - b for p, s, k, d, b in zip(place, strides, window, dilations, begins, strict=True)]
            inside = tirx.all(*(tirx.all(a >= 0, a < extent) for a, extent in zip(at, shape[2:], strict=True)))
            sample = tirx.if_then_else(inside, value(v(n, channel, *at)), start)
            return (largest if kind == "MaxPool" else te.sum)(sample, axis=window)

        y = te.compute(out, element, name="pool")
        if kind == "MaxPool":
            return y

        def finished(*i: Expr) -> Expr:
            if kind == "AveragePool":
                cells = count(0, i[2])
                for axis in range(1, rank):
                    cells = cells * count(axis, i[2 + axis])
                return (y(*i) / cells).astype(dtype)
            if power in (1, 2):
                return (y(*i) if power == 1 else tirx.sqrt(y(*i))).astype(dtype)
            return tirx.power(y(*i), tirx.const(1 / power, working)).astype(dtype)

        return te.compute(out, finished, name="finished")

    arguments = [x]
    if kind == "AveragePool":
        bounds = Pool(out[2:], kernel, strides, dilations, begins)
        arguments.append(counts(c, shape[2:], bounds, ends, working))
    return c.te(kind.lower(), compute, *arguments, pattern=REDUCTION)


def counts(c: Context, image: tuple[int, ...], window: Pool, ends: tuple[int, ...], dtype: str) -> GenericConst:
    """Number of averaged elements along each axis at each position, [rank, longest axis]."""
    counts = np.ones((len(image), max(window.out)), dtype)
    for axis in range(len(image)):
        numbers = _count(
            c, image[axis], window.out[axis], window.kernel[axis], window.strides[axis], window.dilations[axis],
            window.pads[axis], ends[axis],
        )  # fmt: skip
        counts[axis, : window.out[axis]] = numbers
    return known(counts)


def _count(
    c: Context, image: int, out: int, kernel: int, stride: int, dilation: int, begin: int, end: int
) -> list[int]:
    """Averaged elements along one axis: without the padding, or with the padding but none beyond it."""
    padded = bool(c.integer("count_include_pad"))
    first, last = (-begin, image + end) if padded else (0, image)
    return [max(1, sum(first <= p * stride - begin + t * dilation < last for t in range(kernel))) for p in range(out)]


STANDARD: dict[str, Converter] = {"AveragePool": pool, "LpPool": pool, "MaxPool": pool}
