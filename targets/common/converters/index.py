"""Operators that move elements by index: gathers, scatters, padding, running sums, the largest k.

Indices count from the end where they are negative. An index out of bounds is an error in ONNX; a kernel has no way to
report it, so it reads the nearest element instead of foreign memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax, te, tirx, topi
from tvm.ir import Expr, GenericConst

from graphopt.graph.constness import numbers_of
from graphopt.targets.common.converters.base import (
    HALF_DTYPES,
    INJECTIVE,
    OPAQUE,
    Context,
    Converter,
    Inputs,
    Outputs,
    dtype_of,
    shape_of,
)

MAX_RANKED = 4096
"""Most elements along the axis of a TopK, whose cost is quadratic in them."""


def constant(c: Context, index: int) -> NDArray[Any] | None:
    """The value of a constant operand; None if the operand is not constant, or absent."""
    return numbers_of(c.node.inputs[index]) if index < len(c.node.inputs) else None


def known(array: NDArray[Any]) -> GenericConst:
    """A Relax constant of the array's own dtype (`relax.const` alone makes 32 bits of 64)."""
    return relax.const(array, str(array.dtype))


def _within(index: Expr, extent: int) -> Expr:
    """`index` counted from the front, inside [0, extent)."""
    wide = index.astype("int64")
    positive = tirx.Select(wide < 0, wide + extent, wide)
    return tirx.max(tirx.min(positive, tirx.const(extent - 1, "int64")), tirx.const(0, "int64"))


def gather(c: Context, inputs: Inputs) -> Outputs:
    """y[a.., i.., b..] = x[a.., indices[i..], b..]."""
    shape, picks = shape_of(inputs[0]), shape_of(inputs[1])
    axis = c.integer("axis") % len(shape)
    if 0 in shape:
        return NotImplemented

    def compute(x: te.Tensor, indices: te.Tensor) -> te.Tensor:
        def element(*i: Expr) -> Expr:
            chosen = i[axis : axis + len(picks)]
            return x(*i[:axis], _within(indices(*chosen), shape[axis]), *i[axis + len(picks) :])

        return te.compute(c.out_shape, element, name="gather")

    return c.te("gather", compute, *inputs, pattern=INJECTIVE)


def reverse_sequence(c: Context, inputs: Inputs) -> Outputs:
    """y[t, b, ..] = x[lengths[b] - 1 - t, b, ..] for t < lengths[b], else x[t, b, ..]."""
    time, batch = c.integer("time_axis"), c.integer("batch_axis", 1)
    extent = shape_of(inputs[0])[time]

    def compute(x: te.Tensor, lengths: te.Tensor) -> te.Tensor:
        def element(*i: Expr) -> Expr:
            step, length = i[time].astype("int64"), lengths(i[batch])
            place = tirx.Select(step < length, length - tirx.const(1, "int64") - step, step)
            return x(*(_within(place, extent) if axis == time else each for axis, each in enumerate(i)))

        return te.compute(c.out_shape, element, name="reverse_sequence")

    return c.te("reverse_sequence", compute, *inputs, pattern=INJECTIVE)


def gather_elements(c: Context, inputs: Inputs) -> Outputs:
    """y[i..] = x[i.. with indices[i..] on one axis]."""
    shape = shape_of(inputs[0])
    axis = c.integer("axis") % len(shape)

    def compute(x: te.Tensor, indices: te.Tensor) -> te.Tensor:
        def element(*i: Expr) -> Expr:
            return x(*i[:axis], _within(indices(*i), shape[axis]), *i[axis + 1 :])

        return te.compute(c.out_shape, element, name="gather_elements")

    return c.te("gather_elements", compute, *inputs, pattern=INJECTIVE)


def gather_nd(c: Context, inputs: Inputs) -> Outputs:
    """y[b.., i.., r..] = x[b.., indices[b.., i.., :], r..]."""
    shape, picks = shape_of(inputs[0]), shape_of(inputs[1])
    batch, leading = c.integer("batch_dims"), len(picks) - 1

    def compute(x: te.Tensor, indices: te.Tensor) -> te.Tensor:
        def element(*i: Expr) -> Expr:
            chosen = [_within(indices(*i[:leading], j), shape[batch + j]) for j in range(picks[-1])]
            return x(*i[:batch], *chosen, *i[leading:])

        return te.compute(c.out_shape, element, name="gather_nd")

    return c.te("gather_nd", compute, *inputs, pattern=INJECTIVE)


def scatter_nd(c: Context, inputs: Inputs) -> Outputs:
    """TVM's ScatterND, with negative indices normalized first."""
    x, indices, updates = inputs
    shape, picks = shape_of(x), shape_of(indices)

    def compute(table: te.Tensor) -> te.Tensor:
        def element(*i: Expr) -> Expr:
            index = table(*i)
            result = _within(index, shape[0])
            for j in range(1, picks[-1]):
                result = tirx.Select(i[-1] == j, _within(index, shape[j]), result)
            return result

        return te.compute(picks, element, name="positive")

    positive = c.te("positive", compute, indices, pattern=INJECTIVE)
    reduction = {"none": "update"}.get(c.text("reduction", "none"), c.text("reduction", "none"))
    return relax.op.scatter_nd(x, positive, updates, reduction)


def running(function: Callable[..., te.Tensor]) -> Converter:
    """CumSum and CumProd with a constant axis."""

    def convert(c: Context, inputs: Inputs) -> Outputs:
        axis = constant(c, 1)
        if axis is None or not shape_of(inputs[0]):
            return NotImplemented
        place = int(axis.reshape(-1)[0]) % len(shape_of(inputs[0]))
        x = inputs[0]
        if c.integer("reverse"):
            x = c.builder.emit(relax.op.flip(x, place))
        dtype, exclusive = dtype_of(x), bool(c.integer("exclusive"))
        wide = "float32" if dtype in HALF_DTYPES else dtype
        x = x if wide == dtype else c.builder.emit(relax.op.astype(x, wide))
        y = c.te("running", lambda v: function(v, axis=place, dtype=wide, exclusive=exclusive), x, pattern=OPAQUE)
        y = y if wide == dtype else c.builder.emit(relax.op.astype(y, dtype))
        return relax.op.flip(y, place) if c.integer("reverse") else y

    return convert


def pad(c: Context, inputs: Inputs) -> Outputs:
    """Pad in its four modes; the pads and axes are constants, the value need not be."""
    x = inputs[0]
    shape, out, mode = shape_of(x), c.out_shape, c.text("mode", "constant")
    pads = constant(c, 1)
    chosen = constant(c, 3) if len(inputs) > 3 and inputs[3] is not None else np.arange(len(shape))
    if pads is None or chosen is None or (0 in shape and mode != "constant"):
        return NotImplemented
    begins = [0] * len(shape)
    for axis, begin in zip(chosen, pads, strict=False):
        begins[int(axis)] = int(begin)
    value = inputs[2] if len(inputs) > 2 and inputs[2] is not None else known(np.zeros((), np.dtype(dtype_of(x))))
    if mode == "constant":
        fill = c.reshape(value, ())

        def constant_mode(v: te.Tensor, f: te.Tensor) -> te.Tensor:
            def element(*i: Expr) -> Expr:
                source = [index - begin for index, begin in zip(i, begins, strict=True)]
                if 0 in shape:
                    return f()
                inside = [
                    condition
                    for s, extent, begin, size in zip(source, shape, begins, out, strict=True)
                    if begin or size != extent
                    for condition in (s >= 0, s < extent)
                ]
                return tirx.if_then_else(tirx.all(*inside), v(*source), f()) if inside else v(*source)

            return te.compute(out, element, name="pad")

        return c.te("pad", constant_mode, x, fill, pattern=INJECTIVE)
    ends = [size - begin - extent for size, begin, extent in zip(out, begins, shape, strict=True)]
    kept = [extent + min(begin, 0) + min(end, 0) for extent, begin, end in zip(shape, begins, ends, strict=True)]
    if any(extent <= 0 for extent in kept):
        return NotImplemented
    return c.te("pad", lambda v: _mirrored(v, kept, out, begins, mode), x, pattern=INJECTIVE)


def _mirrored(x: te.Tensor, kept: Sequence[int], out: Sequence[int], begins: Sequence[int], mode: str) -> te.Tensor:
    """Pad by repeating the input; `kept` are the extents that remain after negative pads, which cut first."""

    def place(index: Expr, extent: int, begin: int) -> Expr:
        first = max(-begin, 0)
        source = index - begin - first
        if mode == "edge":
            return first + tirx.max(tirx.min(source, tirx.const(extent - 1, "int64")), tirx.const(0, "int64"))
        if mode == "wrap":
            return first + tirx.floormod(source, extent)
        period = max(2 * (extent - 1), 1)
        folded = tirx.floormod(source, period)
        return first + (tirx.min(folded, period - folded) if extent > 1 else tirx.const(0, "int64"))

    return te.compute(out, lambda *i: x(*(place(*each) for each in zip(i, kept, begins, strict=True))), name="pad")


def top_k(c: Context, inputs: Inputs) -> Outputs:
    """Values and indices of the k first elements: the rank of each is the number of elements that precede it."""
    x = inputs[0]
    shape = shape_of(x)
    count = constant(c, 1)
    axis = c.integer("axis", -1) % max(len(shape), 1)
    if count is None or not shape or 0 in shape or shape[axis] > MAX_RANKED:
        return NotImplemented
    length, largest = shape[axis], bool(c.integer("largest", 1))

    def at(tensor: te.Tensor, i: Sequence[Expr], place: Expr | tirx.IterVar) -> Expr:
        return tensor(*i[:axis], place, *i[axis + 1 :])

    def compute(v: te.Tensor) -> list[te.Tensor]:
        def rank(*i: Expr) -> Expr:
            j = te.reduce_axis((0, length), name="j")
            other, own = at(v, i, j), v(*i)
            before = other > own if largest else other < own
            return te.sum(tirx.any(before, tirx.all(other == own, j < i[axis])).astype("int32"), axis=j)

        ranks = te.compute(shape, rank, name="rank")

        def position(*i: Expr) -> Expr:
            j = te.reduce_axis((0, length), name="p")
            hit = at(ranks, i, j) == i[axis].astype("int32")
            return te.max(tirx.Select(hit, j.astype("int64"), tirx.const(0, "int64")), axis=j)

        indices = te.compute(c.out_shape, position, name="indices")
        values = te.compute(c.out_shape, lambda *i: at(v, i, indices(*i)), name="values")
        return [values, indices]

    return c.te("top_k", compute, x, pattern=OPAQUE)


STANDARD: dict[str, Converter] = {
    "CumProd": running(topi.cumprod),
    "CumSum": running(topi.cumsum),
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "Pad": pad,
    "ReverseSequence": reverse_sequence,
    "ScatterND": scatter_nd,
    "TopK": top_k,
}
