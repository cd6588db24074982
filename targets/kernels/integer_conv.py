"""Exact convolutions of quantized images on the plain layout, direct, with output positions in the lanes.

A first kernel writes the image as int16 less its zero point, padding included, so that what stands side by side is what
`dots.py` multiplies: two channels of one position. Then each step of the sum is one line of the image, at whatever tap,
times the weights of a few output channels: no patches are copied.

    image[i, c / 2, row, column, 2] = x[i, c, row - top, column - left] - x_zero
    y[i, o, row, column]            = sum over taps, c of image[i, c / 2, row + tap, column + tap, 2] * w[o, tap, c / 2, 2]

Strides along the last axis take the columns apart by their remainder, so that the columns of one tap are contiguous.
Where a group has one channel only, two taps of a row make the pair. A kernel of one element sees no rows: its
positions are one long row.

Weights are bytes in memory; the first kernel also writes them as int16 less their zero point.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import s_tir, te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from graphopt.targets.kernels import dots, gemm
from graphopt.targets.kernels.common import (
    RULE,
    Block,
    blocks_of,
    const,
    dims,
    inline_after,
    padded_tile,
    renumber,
    round_up,
)
from graphopt.targets.machine import CpuMachine

NAME = "integer_conv"

MOST_VECTORS = 4


@dataclass(frozen=True, slots=True)
class Window:
    """A convolution of x[batch, groups * channels, *image] to [batch, groups * filters, *out], and its register tile.

    `pads` are before each axis. The tile has `rows` filters and `width` positions.
    """

    batch: int
    groups: int
    channels: int
    filters: int
    image: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    out: tuple[int, ...]
    rows: int
    width: int

    @property
    def flat(self) -> bool:
        """Whether the positions of all axes are one row."""
        ends = [(out - 1) * stride for out, stride in zip(self.out, self.strides, strict=True)]
        inside = all(end < extent for end, extent in zip(ends, self.image, strict=True))
        return math.prod(self.kernel) == 1 and not any(self.pads) and inside

    @property
    def taps_in_pairs(self) -> bool:
        """Whether two taps of a row make a pair, not two channels."""
        return self.channels == 1 and self.kernel[-1] > 1

    @property
    def pairs(self) -> int:
        """Pairs of channels."""
        return (self.channels + 1) // 2

    @property
    def taps(self) -> tuple[int, ...]:
        """Taps, or pairs of them, along each axis that is kept apart."""
        if self.flat:
            return (1,)
        return (*self.kernel[:-1], (self.kernel[-1] + 1) // 2 if self.taps_in_pairs else self.kernel[-1])

    @property
    def places(self) -> tuple[int, ...]:
        """The output's positions along the same axes; the last one is rounded up to whole tiles."""
        outer, last = ((), math.prod(self.out)) if self.flat else (self.out[:-1], self.out[-1])
        return (*outer, round_up(last, self.width))

    @property
    def step(self) -> int:
        """Columns between neighbouring lanes."""
        return 1 if self.flat else self.strides[-1]

    def column(self, tap: Any) -> tuple[Any, Any]:
        """Which remainder of the columns a tap of the last axis reads, and how far it starts into them."""
        if self.flat:
            return 0, 0
        at = tap * (2 if self.taps_in_pairs else 1) * self.dilations[-1]
        return (0, at) if self.step == 1 else (tirx.floormod(at, self.step), tirx.floordiv(at, self.step))

    @property
    def lines(self) -> tuple[int, ...]:
        """Shape of the rewritten image: [batch * groups, pairs, *rows of the image and its padding, remainders, n, 2]."""
        reach = [(t - 1) * d for t, d in zip(self.kernel, self.dilations, strict=True)]
        rows = [] if self.flat else [(o - 1) * s + r + 1 for o, s, r in zip(self.out, self.strides, reach, strict=True)]
        farthest = 0 if self.flat else reach[-1] // self.step
        return (self.batch * self.groups, self.pairs, *rows[:-1], self.step, self.places[-1] + farthest, 2)

    @property
    def tiles(self) -> tuple[int, ...]:
        """Shape of the packed weights: [groups, tiles of filters, *taps, pairs, rows, 2]."""
        return (self.groups, math.ceil(self.filters / self.rows), *self.taps, self.pairs, self.rows, 2)


def choose_tile(filters: int, places: int, machine: CpuMachine) -> tuple[int, int]:
    """Rows of filters and width of positions with the best estimate, for one row of `places` positions."""
    lanes, registers = machine.lanes("int32"), machine.level.registers
    best, best_cost = (1, lanes), math.inf
    for vectors in range(1, MOST_VECTORS + 1):
        limit = (registers - vectors - 2) // vectors
        if limit < 1 or (vectors > 1 and (vectors - 1) * lanes >= places):
            continue
        for rows in {padded_tile(filters, limit), min(filters, limit)}:
            cycles = max(rows * vectors / 2, (rows + vectors) / 2, (2 * rows * vectors + rows + vectors) / 5, 3)
            cost = math.ceil(filters / rows) * math.ceil(places / (vectors * lanes)) * cycles
            if cost < best_cost * 0.995:
                best, best_cost = (rows, vectors * lanes), cost
    return best


def pack(w: Any, window: Window) -> Any:
    """Bytes w[groups * filters, channels, *kernel] in the order of `window.tiles`; what is missing is zero."""
    kernel, paired = window.kernel, window.taps_in_pairs

    def element(g: Any, tile: Any, *rest: Any) -> Any:
        *taps, pair, row, half = rest
        at = tile * window.rows + row
        channel = pair * 2 + half
        conditions = [at < window.filters] if window.filters % window.rows else []
        if window.flat:
            taps = [0] * len(kernel)
        if paired:
            channel, taps[-1] = 0, taps[-1] * 2 + half
            if kernel[-1] % 2:
                conditions.append(taps[-1] < kernel[-1])
        elif window.channels % 2:
            conditions.append(channel < window.channels)
        value = w[(g * window.filters + at, channel, *taps)]
        return tirx.if_then_else(tirx.all(*conditions), value, const(0, w.dtype)) if conditions else value

    return te.compute(window.tiles, element, name="pack")


def prepare(x: Any, packed: Any, window: Window, x_zero: Any = None, w_zero: Any = None) -> list[Any]:
    """The image in lines and the weights, both int16 less their zero points.

    Args:
        x: [N, C, *image] of bytes.
        packed: from `pack`.
        x_zero: [1].
        w_zero: [1] or [groups * filters].
    """
    given = [x, packed, *(zero for zero in (x_zero, w_zero) if zero is not None)]

    def body(ins: Sequence[Any], outs: Sequence[Any]) -> Any:
        further = iter(ins[2:])
        zeros = [None if zero is None else next(further) for zero in (x_zero, w_zero)]
        with IRBuilder() as lines:
            _write_lines(ins[0], zeros[0], outs[0], window)
        with IRBuilder() as weights:
            _write_weights(ins[1], zeros[1], outs[1], window)
        return tirx.SeqStmt([lines.get(), weights.get()])

    return list(te.extern([window.lines, window.tiles], given, body, dtype=["int16", "int16"], name="prepare"))


def _write_lines(x: Any, zero: Any, lines: Any, window: Window) -> None:
    whole = window.lines
    count = math.prod(whole[:2]) if window.flat else math.prod(whole[:-3])
    with T.parallel(0, count) as task:
        place, rest = [], task
        for extent in reversed(whole[2:-3]):
            place.insert(0, tirx.floormod(rest, extent))
            rest = tirx.floordiv(rest, extent)
        pair, i = tirx.floormod(rest, window.pairs), tirx.floordiv(rest, window.pairs)
        image, group = tirx.floordiv(i, window.groups), tirx.floormod(i, window.groups)
        centre = T.bind(const(0, "int16") if zero is None else zero[0].astype("int16"))
        rows = [at - pad for at, pad in zip(place, window.pads, strict=False)]
        inside = [
            condition
            for row, extent, total, pad in zip(rows, window.image, whole[2:-3], window.pads, strict=False)
            for condition in ([row >= 0] if pad else []) + ([row < extent] if total - pad > extent else [])
        ]

        def value(half: int, at: Any) -> Any:
            spot = [*rows, at]
            if window.flat:
                spot = []
                for axis in reversed(range(len(window.out))):
                    step = tirx.floormod(at, window.out[axis]) if axis else at
                    spot.insert(0, step * window.strides[axis])
                    at = tirx.floordiv(at, window.out[axis]) if axis else at
            channel = group * window.channels + (0 if window.taps_in_pairs else pair * 2 + half)
            return x[(image, channel, *spot)].astype("int16") - centre

        def write(exists: bool) -> None:
            """All columns; the second of the pair may not exist."""
            for remainder in range(whole[-3]):
                _write_columns(lines, (i, pair, *place, remainder), value, exists, window, remainder)

        def every() -> None:
            if window.channels % 2 == 0 or window.taps_in_pairs:
                write(True)
                return
            with T.If(pair < window.pairs - 1):
                with T.Then():
                    write(True)
                with T.Else():
                    write(False)

        if not inside:
            every()
            return
        with T.If(tirx.all(*inside)):
            with T.Then():
                every()
            with T.Else(), T.serial(0, whole[-3]) as remainder, T.serial(0, whole[-2]) as n:
                for half in range(2):
                    T.buffer_store(lines, const(0, "int16"), (i, pair, *place, remainder, n, half))


def _write_columns(
    lines: Any, index: tuple[Any, ...], value: Callable[[int, Any], Any], exists: bool, window: Window, remainder: int
) -> None:
    """The columns of one remainder: zeros, the image from `value` of (half of the pair, column), zeros."""
    total, step = window.lines[-2], window.step
    offsets, bounds = [0, 0], [(0, math.prod(window.out))] * 2
    if not window.flat:
        distance = window.dilations[-1] if window.taps_in_pairs else 0
        offsets = [remainder - window.pads[-1] + half * distance for half in range(2)]
        firsts = [min(total, max(0, -(offset // step))) for offset in offsets]
        ends = [(window.image[-1] - 1 - offset) // step + 1 for offset in offsets]
        bounds = [(first, max(first, min(total, end))) for first, end in zip(firsts, ends, strict=True)]
    if not exists:
        bounds[1] = (0, total)
    low, high = max(first for first, _ in bounds), min(end for _, end in bounds)

    def stored(half: int, n: Any, start: int, end: int) -> Any:
        zero = const(0, "int16")
        first, last = bounds[half]
        if (half and not exists) or end <= first or start >= last:
            return zero
        found = value(half, n * step + offsets[half])
        if start >= first and end <= last:
            return found
        return tirx.if_then_else(tirx.all(n >= first, n < last), found, zero)

    # Without a condition inside the image, so that LLVM makes vectors of it.
    for start, end in ((0, low), (low, high), (max(low, high), total)):
        if start < end:
            with T.serial(start, end) as n:
                for half in range(2):
                    T.buffer_store(lines, stored(half, n, start, end), (*index, n, half))


def _write_weights(packed: Any, zero: Any, weights: Any, window: Window) -> None:
    *outer, rows, _ = window.tiles
    depth = math.prod(outer[2:])
    with T.parallel(0, outer[0] * outer[1]) as task, T.serial(0, depth) as step:
        group, tile = tirx.floordiv(task, outer[1]), tirx.floormod(task, outer[1])
        place, rest = [], step
        for extent in reversed(outer[2:]):
            place.insert(0, tirx.floormod(rest, extent))
            rest = tirx.floordiv(rest, extent)
        # the second tap of the last pair may not exist, but its line of the image has something in it
        last = window.taps_in_pairs and window.kernel[-1] % 2
        with T.serial(0, rows) as row:
            centre = const(0, "int16")
            if zero is not None:
                one = dims(zero) == [1]
                at = tirx.min(tile * rows + row, window.filters - 1) + group * window.filters
                centre = zero[0 if one else at].astype("int16")
            for half in range(2):
                index = (group, tile, *place, row, half)
                found = packed[index].astype("int16")
                if zero is not None:
                    found = found - centre
                    if half and last:
                        found = tirx.Select(place[-2] < outer[-2] - 1, found, const(0, "int16"))
                T.buffer_store(weights, found, index)


def compute(weights: Any, lines: Any, window: Window) -> Any:
    """The sums in int32, [N, groups * filters, *out]."""
    outer = window.places[:-1]
    reduced = [te.reduce_axis((0, extent), "tap") for extent in window.taps]
    k, half = te.reduce_axis((0, window.pairs), "k"), te.reduce_axis((0, 2), "half")
    filters = window.tiles[1] * window.rows

    def product(i: Any, g: Any, o: Any, *place: Any) -> Any:
        taps = (0,) * len(window.taps) if window.flat else reduced
        rows = [
            at * stride + tap * dilation
            for at, stride, tap, dilation in zip(place[:-1], window.strides, taps[:-1], window.dilations, strict=False)
        ]
        remainder, start = window.column(taps[-1])
        left = weights[(g, tirx.floordiv(o, window.rows), *reduced, k, tirx.floormod(o, window.rows), half)]
        right = lines[(i * window.groups + g, k, *rows, remainder, place[-1] + start, half)]
        return te.sum(dots.product(left, right), axis=[*reduced, k, half])

    attributes = {RULE: NAME, "graphopt.rows": window.rows, "graphopt.width": window.width}
    shape = (window.batch, window.groups, filters, *window.places)
    sums = te.compute(shape, product, name=NAME, attrs=attributes)

    def finish(i: Any, channel: Any, *place: Any) -> Any:
        at = place
        if window.flat:
            flat: Any = 0
            for axis, extent in zip(place, window.out, strict=True):
                flat = flat * extent + axis
            at = (flat,)
        return sums[(i, tirx.floordiv(channel, window.filters), tirx.floormod(channel, window.filters), *at)]

    return te.compute((window.batch, window.groups * window.filters, *window.out), finish, name="finish")


def _product_axes(sch: s_tir.Schedule, last: Any, groups: int, outer: int) -> Callable[..., list[Any]]:
    """The map from the output's indices to (image, group, filter, *outer places, position)."""
    extents = [int(iterator.dom.extent) for iterator in sch.get(last).iter_vars]
    filters = extents[1] // groups

    def index_map(i: Any, channel: Any, *place: Any) -> list[Any]:
        flat: Any = tirx.IntImm(i.ty.dtype, 0)
        for at, extent in zip(place[outer:], extents[2 + outer :], strict=True):
            flat = flat * extent + at
        return [i, tirx.floordiv(channel, filters), tirx.floormod(channel, filters), *place[:outer], flat]

    return index_map


def schedule(sch: s_tir.Schedule, anchor: Block, machine: CpuMachine) -> Any:
    """Parallel over (image, group, outer places, tile of positions); tiles of filters innermost share its lines."""
    annotations = sch.get(anchor.rv).annotations
    rows, width = int(annotations["graphopt.rows"]), int(annotations["graphopt.width"])
    groups, outer = anchor.spatial[1], len(anchor.spatial) - 4
    lanes = machine.lanes("int32")
    last = inline_after(sch, anchor)
    sch = renumber(sch, last, _product_axes(sch, last, groups, outer))
    last, product = blocks_of(sch)[-1].rv, sch.get_sblock(anchor.name)
    ragged = bool(int(sch.get(last).iter_vars[-1].dom.extent) % width)
    if ragged:  # as in `gemm.py`
        reads = [str(region.source.name) for region in sch.get(last).reads]
        copy = sch.cache_read(last, reads.index(anchor.name), "local")
    image, group, o, *places, w = sch.get_loops(last)
    o_out, o_in = sch.split(o, [None, rows])
    w_out, w_in = sch.split(w, [None, width])
    sch.reorder(image, group, *places, w_out, o_out, o_in, w_in)
    task = sch.fuse(image, group, *places, w_out, o_out)
    if ragged:
        gemm.copy_out(sch, copy, task, lanes)
    sch.compute_at(product, task, preserve_unit_loops=True)
    sch.set_scope(product, 0, "local")
    loops = sch.get_loops(product)
    tile_o, tile_w, steps, half = loops[3], loops[4 + outer], loops[5 + outer : -1], loops[-1]
    vectors, lane = sch.split(tile_w, [None, lanes])
    sch.reorder(*steps, tile_o, vectors, lane, half)
    sch.parallel(task)
    sch.unroll(vectors)
    sch.unroll(tile_o)
    if not ragged:
        columns, store_lane = sch.split(w_in, [None, lanes])
        sch.unroll(o_in)
        sch.unroll(columns)
        sch.vectorize(store_lane)
    start = sch.decompose_reduction(product, steps[0])
    *_, zero_rows, zero_vectors, zero_lane = sch.get_loops(start)
    sch.unroll(zero_rows)
    sch.unroll(zero_vectors)
    sch.vectorize(zero_lane)
    dots.tensorize(sch, lane, machine, "int16")
    return sch
