"""Exact convolutions of quantized images on the plain layout, direct, with output positions in the lanes.

A first kernel rewrites the image, padding included, so that the operands of one instruction of `dots.py`, a unit of
channels of one position, are adjacent. Then each step of the sum is one line of the image, at any tap, times the
weights of a few output channels (filters): no patches are copied.

    lines[i, c / unit, row, column, unit] = x[i, c, row - top, column - left]
    y[i, o, row, column] = sum over taps, c of
        lines[i, c / unit, row + tap, column + tap, unit] * w[o, tap, c / unit, unit]

Strides along the last axis take the columns apart by their remainder, so that the columns of one tap are contiguous.
Rows that would leave many lanes empty are joined where strides are 1: the next row of an image begins in the lines
where the padding of one ends, and the positions in between are computed, but cut out afterwards.
Where a group has one channel only, taps of a row make the unit. A kernel of one element sees no rows: its positions are
one long row.

With units of words the lines are int16 less the zero point; the weights are bytes in memory, and the first kernel also
writes them as int16 less theirs. With units of bytes both stay bytes, the lines unsigned and padded with the zero
point, and the zero point times the sum of a filter's weights is subtracted at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm import s_tir, te, tirx
from tvm.ir import Expr

from graphopt.targets.common.kernels.blocks import RULE, Block, blocks_of, const, dims
from graphopt.targets.cpu.kernels.integer import dots
from graphopt.targets.cpu.kernels.integer.gemm import REQUANTIZE, SMALLEST_SHARE, epilogue, place_tile, tiles_out
from graphopt.targets.cpu.kernels.integer.window import Window
from graphopt.targets.cpu.kernels.tiling import renumber
from graphopt.targets.cpu.machine import CpuMachine

NAME = "integer_conv"

MOST_UNROLLED = 64
"""Most multiply instructions in a fully unrolled sum."""


def pack(w: te.Tensor, window: Window) -> te.Tensor:
    """Bytes w[groups * filters, channels, *kernel] in the order of `window.tiles`; what is missing is zero."""
    kernel = window.kernel

    def element(g: Expr, tile: Expr, *rest: Expr) -> Expr | te.TensorSlice:
        *taps, step, row, part = rest
        at = tile * window.rows + row
        channel = step * window.unit + part
        conditions = [at < window.filters] if window.filters % window.rows else []
        if window.flat:
            taps = [0] * len(kernel)
        if window.of_taps:
            channel, taps[-1] = 0, taps[-1] * window.unit + part
            if kernel[-1] % window.unit:
                conditions.append(taps[-1] < kernel[-1])
        elif window.channels % window.unit:
            conditions.append(channel < window.channels)
        value = w[(g * window.filters + at, channel, *taps)]
        return tirx.if_then_else(tirx.all(*conditions), value, const(0, w.dtype)) if conditions else value

    return te.compute(window.tiles, element, name="pack")


def filter_sums(w: te.Tensor) -> te.Tensor:
    """Sums of the weights of each filter of w[O, channels, *kernel] in int32, [O]."""
    axes = [te.reduce_axis((0, extent), "tap") for extent in dims(w)[1:]]
    return te.compute((dims(w)[0],), lambda o: te.sum(w[(o, *axes)].astype("int32"), axis=axes), name="filter_sums")


def compute(
    weights: te.Tensor,
    lines: te.Tensor,
    window: Window,
    *,
    shift: Callable[[], Expr] | None = None,
    sums_of_filters: Any = None,
    requantize: Callable[[Expr | te.TensorSlice, Expr], Expr] | None = None,
) -> te.Tensor:
    """The sums in int32, [N, groups * filters, *window.kept].

    Args:
        shift: the offset of the lines, in int32, to subtract; it requires `sums_of_filters` from `filter_sums`.
        requantize: the function of a sum and its output channel that gives the result.
    """
    reduced = [te.reduce_axis((0, extent), "tap") for extent in window.taps]
    k, part = te.reduce_axis((0, window.units), "k"), te.reduce_axis((0, window.unit), "part")
    filters = window.tiles[1] * window.rows
    shape = (window.batch, window.groups, filters, *window.places)

    def product(i: Expr, g: Expr, o: Expr, *place: Expr) -> Expr:
        rows = [
            at * stride + tap * dilation
            for at, stride, tap, dilation in zip(place[:-1], window.strides, reduced, window.dilations, strict=False)
        ]
        remainder, start = window.column(*reduced)
        left = weights[(g, tirx.floordiv(o, window.rows), *reduced, k, tirx.floormod(o, window.rows), part)]
        right = lines[(i * window.groups + g, k, *rows, remainder, place[-1] + start, part)]
        return te.sum(dots.product(left, right), axis=[*reduced, k, part])

    attributes = {RULE: NAME, "graphopt.rows": window.rows, "graphopt.width": window.width}
    sums = te.compute(shape, product, name=NAME, attrs=attributes)

    def total(i: Expr, g: Expr, o: Expr, *place: Expr) -> Expr | te.TensorSlice:
        result, channel = sums[(i, g, o, *place)], g * window.filters + tirx.min(o, window.filters - 1)
        if shift is not None:
            result = result - shift() * sums_of_filters[channel]
        return result if requantize is None else requantize(result, channel)

    if requantize is not None:
        kept = te.compute(shape, total, name=REQUANTIZE)

    def finish(i: Expr, channel: Expr, *place: Expr) -> Expr | te.TensorSlice:
        at = (i, tirx.floordiv(channel, window.filters), tirx.floormod(channel, window.filters), *place)
        return total(*at) if requantize is None else kept(*at)

    return te.compute((window.batch, window.groups * window.filters, *window.kept), finish, name="finish")


def cut_out(y: te.Tensor, window: Window) -> te.Tensor:
    """The valid positions of joined rows: [N, O, *out] of [N, O, *kept]."""

    def element(*index: Expr) -> te.TensorSlice:
        *outer, row, column = index
        return y[(*outer, row * window.pitch + column)]

    return te.compute((*dims(y)[:2], *window.out), element, name="cut_out")


def schedule(sch: s_tir.Schedule, anchor: Block, machine: CpuMachine) -> s_tir.Schedule:
    """Parallel over (image, group, outer places) and tiles of positions; tiles of filters innermost share its lines."""
    annotations = sch.get(anchor.rv).annotations
    rows, width = int(annotations["graphopt.rows"]), int(annotations["graphopt.width"])
    groups, outer = anchor.spatial[1], len(anchor.spatial) - 4
    lanes = machine.lanes("int32")
    dtypes = [str(region.source.dtype) for region in sch.get(anchor.rv).reads[:2]]
    last, between = epilogue(sch, anchor)
    filters = int(sch.get(last).iter_vars[1].dom.extent) // groups
    sch = renumber(sch, last, lambda i, c, *place: [i, tirx.floordiv(c, filters), tirx.floormod(c, filters), *place])
    last, product = blocks_of(sch)[-1].rv, sch.get_sblock(anchor.name)
    copy = tiles_out(sch, last, anchor.name, between, bool(int(sch.get(last).iter_vars[-1].dom.extent) % width))
    image, group, o, *places, w = sch.get_loops(last)
    o_out, o_in = sch.split(o, [None, rows])
    w_out, w_in = sch.split(w, [None, width])
    sch.reorder(image, group, *places, w_out, o_out, o_in, w_in)
    tasks = [image, group, *places]
    if math.prod(anchor.spatial[:2]) * math.prod(anchor.spatial[3:-1]) < SMALLEST_SHARE * machine.cores:
        tasks.append(w_out)
    if tasks[-1] is w_out and math.prod(map(int, (sch.get(loop).extent for loop in tasks))) < 2 * machine.cores:
        tasks.append(o_out)
    task = sch.fuse(*tasks)
    tile = task if tasks[-1] is o_out else o_out
    place_tile(sch, tile, copy, (o_in, w_in), lanes)
    sch.compute_at(product, tile, preserve_unit_loops=True)
    sch.set_scope(product, 0, "local")
    loops = sch.get_loops(product)
    loops = loops[len(loops) - 4 - outer - len(anchor.reduce) :]
    tile_o, tile_w, steps, part = loops[2], loops[3 + outer], loops[4 + outer : -1], loops[-1]
    vectors, lane = sch.split(tile_w, [None, lanes])
    sch.reorder(*steps, tile_o, vectors, lane, part)
    sch.parallel(task)
    sch.unroll(vectors)
    sch.unroll(tile_o)
    start = sch.decompose_reduction(product, steps[0])
    *_, zero_rows, zero_vectors, zero_lane = sch.get_loops(start)
    sch.unroll(zero_rows)
    sch.unroll(zero_vectors)
    sch.vectorize(zero_lane)
    if math.prod(anchor.reduce[:-1]) * rows * (width // lanes) <= MOST_UNROLLED:
        for loop in steps:
            sch.unroll(loop)
    dots.tensorize(sch, lane, machine, dtypes)
    return sch
