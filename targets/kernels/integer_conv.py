"""Exact convolutions of quantized images on the plain layout, direct, with output positions in the lanes.

A first kernel writes the image so that what stands side by side is what `dots.py` multiplies, a unit of channels of one
position, padding included. Then each step of the sum is one line of the image, at whatever tap, times the weights of a
few output channels (filters): no patches are copied.

    lines[i, c / unit, row, column, unit] = x[i, c, row - top, column - left]
    y[i, o, row, column] = sum over taps, c of
        lines[i, c / unit, row + tap, column + tap, unit] * w[o, tap, c / unit, unit]

Strides along the last axis take the columns apart by their remainder, so that the columns of one tap are contiguous.
Where a group has one channel only, taps of a row make the unit. A kernel of one element sees no rows: its positions are
one long row.

With units of words the lines are int16 less the zero point; the weights are bytes in memory, and the first kernel also
writes them as int16 less theirs. With units of bytes both stay bytes, the lines unsigned and padded with the zero
point, and the zero point times the sum of a filter's weights is subtracted at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tvm import s_tir, te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from graphopt.targets.kernels import dots
from graphopt.targets.kernels.common import RULE, Block, blocks_of, const, dims, padded_tile, renumber, round_up
from graphopt.targets.kernels.integer_gemm import REQUANTIZE, SMALLEST_SHARE, epilogue, place_tile, tiles_out, unsigned
from graphopt.targets.machine import CpuMachine

NAME = "integer_conv"

MOST_VECTORS = 4

MOST_UNROLLED = 64
"""Instructions that multiply in a sum whose steps stand one after another in the code."""


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
    unit: int
    rows: int = 1
    width: int = 1

    @property
    def flat(self) -> bool:
        """Whether the positions of all axes are one row."""
        ends = [(out - 1) * stride for out, stride in zip(self.out, self.strides, strict=True)]
        inside = all(end < extent for end, extent in zip(ends, self.image, strict=True))
        return math.prod(self.kernel) == 1 and not any(self.pads) and inside

    @property
    def of_taps(self) -> bool:
        """Whether taps of a row make a unit, not channels."""
        return self.channels == 1 and self.kernel[-1] > 1

    @property
    def units(self) -> int:
        """Units of channels."""
        return -(-self.channels // self.unit)

    @property
    def taps(self) -> tuple[int, ...]:
        """Taps, or units of them, along each axis that is kept apart."""
        if self.flat:
            return (1,)
        return (*self.kernel[:-1], -(-self.kernel[-1] // self.unit) if self.of_taps else self.kernel[-1])

    @property
    def kept(self) -> tuple[int, ...]:
        """The output's positions along the same axes."""
        return (math.prod(self.out),) if self.flat else self.out

    @property
    def places(self) -> tuple[int, ...]:
        """The same, the last one rounded up to whole tiles."""
        return (*self.kept[:-1], round_up(self.kept[-1], self.width))

    @property
    def step(self) -> int:
        """Columns between neighbouring lanes."""
        return 1 if self.flat else self.strides[-1]

    def column(self, tap: Any) -> tuple[Any, Any]:
        """Which remainder of the columns a tap of the last axis reads, and how far it starts into them."""
        if self.flat:
            return 0, 0
        at = tap * (self.unit if self.of_taps else 1) * self.dilations[-1]
        return (0, at) if self.step == 1 else (tirx.floormod(at, self.step), tirx.floordiv(at, self.step))

    @property
    def remainders(self) -> int:
        """Of the columns, as many as a tap reads: units of taps that are one each begin at the first."""
        return 1 if self.of_taps and self.taps[-1] == 1 else self.step

    @property
    def lines(self) -> tuple[int, ...]:
        """Shape of the rewritten image: [batch * groups, units, *rows and their padding, remainders, n, unit]."""
        reach = [(t - 1) * d for t, d in zip(self.kernel, self.dilations, strict=True)]
        rows = [] if self.flat else [(o - 1) * s + r + 1 for o, s, r in zip(self.out, self.strides, reach, strict=True)]
        farthest = (self.taps[-1] - 1) * self.unit * self.dilations[-1] if self.of_taps else reach[-1]
        farthest = 0 if self.flat else farthest // self.step
        columns = self.places[-1] + farthest
        return (self.batch * self.groups, self.units, *rows[:-1], self.remainders, columns, self.unit)

    @property
    def tiles(self) -> tuple[int, ...]:
        """Shape of the packed weights: [groups, tiles of filters, *taps, units, rows, unit]."""
        return (self.groups, math.ceil(self.filters / self.rows), *self.taps, self.units, self.rows, self.unit)

    @property
    def dtypes(self) -> tuple[str, str]:
        """Of the weights, and of the lines, that are multiplied."""
        return ("int16", "int16") if self.unit == dots.WORDS else ("int8", "uint8")


def choose_tile(window: Window, machine: CpuMachine) -> Window:
    """The window with the tile that has the best estimate."""
    lanes, registers = machine.lanes("int32"), machine.level.registers
    fused = window.unit == dots.WORDS or machine.level.vnni
    places, steps = window.kept[-1], math.prod(window.taps) * window.units
    instructions, other = (2, 2) if fused else (3, 3)  # to multiply and add; registers that are no sums: also the ones
    load = 6 if window.step == 1 and window.kernel[-1] > 1 else 3  # the lines of a tap may cross those of the cache
    best, best_cost = (1, lanes), math.inf
    for vectors in range(1, MOST_VECTORS + 1):
        limit = (registers - vectors - other) // vectors
        if limit < 1 or (vectors > 1 and (vectors - 1) * lanes >= places):
            continue
        width = vectors * lanes
        for rows in {padded_tile(window.filters, limit), min(window.filters, limit)}:
            cycles = max(rows * vectors * instructions / 4, (rows + vectors) / 2, 3) + (rows + load * vectors) / 10
            store = 4 if places % width == 0 else 6 if places < width else 4 + 4 * lanes  # cut byte by byte
            tiles = math.ceil(window.filters / rows) * math.ceil(places / width)
            cost = tiles * (steps * cycles + rows * vectors * store + 10)
            if cost < best_cost * 0.995:
                best, best_cost = (rows, width), cost
    return replace(window, rows=best[0], width=best[1])


def pack(w: Any, window: Window) -> Any:
    """Bytes w[groups * filters, channels, *kernel] in the order of `window.tiles`; what is missing is zero."""
    kernel = window.kernel

    def element(g: Any, tile: Any, *rest: Any) -> Any:
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


def filter_sums(w: Any) -> Any:
    """Sums of the weights of each filter of w[O, channels, *kernel] in int32, [O]."""
    axes = [te.reduce_axis((0, extent), "tap") for extent in dims(w)[1:]]
    return te.compute((dims(w)[0],), lambda o: te.sum(w[(o, *axes)].astype("int32"), axis=axes), name="filter_sums")


def prepare(x: Any, packed: Any, window: Window, x_zero: Any = None, w_zero: Any = None) -> list[Any]:
    """The image in lines, and with units of words the weights as int16 less their zero point.

    Args:
        x: [N, C, *image] of bytes.
        packed: from `pack`; None with units of bytes.
        x_zero: [1].
        w_zero: [1] or [groups * filters].
    """
    given = [tensor for tensor in (x, packed, x_zero, w_zero) if tensor is not None]

    def body(ins: Sequence[Any], outs: Sequence[Any]) -> Any:
        further = iter(ins)
        image, weights, centre, zero = (None if t is None else next(further) for t in (x, packed, x_zero, w_zero))
        with IRBuilder() as lines:
            _Lines(image, centre, outs[0], window).write()
        if weights is None:
            return lines.get()
        with IRBuilder() as widened:
            _write_weights(weights, zero, outs[1], window)
        return tirx.SeqStmt([lines.get(), widened.get()])

    shapes, kinds = [window.lines], [window.dtypes[1]]
    if packed is not None:
        shapes, kinds = [*shapes, window.tiles], [*kinds, window.dtypes[0]]
    made = te.extern(shapes, given, body, dtype=kinds, name="prepare")
    return [made] if packed is None else list(made)


class _Lines:
    """Writes the loops that rewrite an image: a task for each unit of channels and row."""

    def __init__(self, x: Any, zero: Any, lines: Any, window: Window) -> None:
        self.x, self.zero, self.lines, self.window = x, zero, lines, window
        self.dtype = window.dtypes[1]
        self.whole = window.lines

    def write(self) -> None:
        window, whole = self.window, self.whole
        with T.parallel(0, math.prod(whole[:-3])) as task:
            place: list[Any] = []
            rest = task
            for extent in reversed(whole[2:-3]):
                place.insert(0, tirx.floormod(rest, extent))
                rest = tirx.floordiv(rest, extent)
            step, i = tirx.floormod(rest, window.units), tirx.floordiv(rest, window.units)
            self.index = (i, step, *place)
            self.channel = tirx.floormod(i, window.groups) * window.channels + step * window.unit
            self.rows = [at - pad for at, pad in zip(place, window.pads, strict=False)]
            self.centre = T.bind(self._centre())
            self.outside = const(0, "int16") if window.unit == dots.WORDS else self.centre
            inside = [
                condition
                for row, extent, total, pad in zip(self.rows, window.image, whole[2:-3], window.pads, strict=False)
                for condition in ([row >= 0] if pad else []) + ([row < extent] if total - pad > extent else [])
            ]
            if not inside:
                self._all_channels(step)
                return
            with T.If(tirx.all(*inside)):
                with T.Then():
                    self._all_channels(step)
                with T.Else(), T.serial(0, whole[-3]) as remainder, T.serial(0, whole[-2]) as n:
                    for part in range(window.unit):
                        T.buffer_store(self.lines, self.outside, (*self.index, remainder, n, part))

    def _centre(self) -> Any:
        """The zero point as the lines have it."""
        if self.window.unit == dots.WORDS:
            return const(0, "int16") if self.zero is None else self.zero[0].astype("int16")
        if self.zero is None:
            return const(0 if str(self.x.dtype) == "uint8" else 128, "uint8")
        return unsigned(self.zero[0])

    def _all_channels(self, step: Any) -> None:
        """The last unit of channels may lack some."""
        window = self.window
        rest = window.channels % window.unit
        if window.of_taps or not rest:
            self._columns(window.unit)
            return
        if window.units == 1:
            self._columns(rest)
            return
        with T.If(step < window.units - 1):
            with T.Then():
                self._columns(window.unit)
            with T.Else():
                self._columns(rest)

    def _columns(self, parts: int) -> None:
        """One row of an image of which a unit has `parts` channels: for each remainder padding, the image, padding."""
        window, total = self.window, self.whole[-2]
        distance = 0 if window.flat or not window.of_taps else window.dilations[-1]
        for remainder in range(window.remainders):
            offsets = [0 if window.flat else remainder - window.pads[-1] + p * distance for p in range(window.unit)]
            bounds = [self._inside(offset) for offset in offsets]
            low, high = max(first for first, _ in bounds), min(end for _, end in bounds)
            # Without a condition inside the image, so that LLVM makes vectors of it.
            for start, end in ((0, min(low, total)), (low, high), (max(low, high), total)):
                if start >= end:
                    continue
                with T.serial(start, end) as n:
                    for part, (first, last) in enumerate(bounds):
                        if part >= parts or end <= first or start >= last:
                            stored = self.outside
                        else:
                            stored = self._value(part, n * window.step + offsets[part])
                            if start < first or end > last:
                                within = tirx.all(n >= first, n < last)
                                stored = tirx.if_then_else(within, stored, self.outside)
                        T.buffer_store(self.lines, stored, (*self.index, remainder, n, part))

    def _inside(self, offset: int) -> tuple[int, int]:
        """Which columns of a remainder, that starts at `offset` of the image, lie in the image."""
        window, total = self.window, self.whole[-2]
        if window.flat:
            return 0, window.kept[0]
        first = min(total, max(0, -(offset // window.step)))
        return first, max(first, min(total, (window.image[-1] - 1 - offset) // window.step + 1))

    def _value(self, part: int, at: Any) -> Any:
        """The image at column `at`, or at that position where all are one row."""
        window = self.window
        place = [*self.rows, at]
        if window.flat:
            place = []
            for axis in reversed(range(len(window.out))):
                step = tirx.floormod(at, window.out[axis]) if axis else at
                place.insert(0, step * window.strides[axis])
                at = tirx.floordiv(at, window.out[axis]) if axis else at
        i = tirx.floordiv(self.index[0], window.groups)
        value = self.x[(i, self.channel + (0 if window.of_taps else part), *place)]
        return unsigned(value) if window.unit == dots.BYTES else value.astype("int16") - self.centre


def _write_weights(packed: Any, zero: Any, weights: Any, window: Window) -> None:
    *outer, rows, unit = window.tiles
    with T.parallel(0, outer[0] * outer[1]) as task, T.serial(0, math.prod(outer[2:])) as step:
        group, tile = tirx.floordiv(task, outer[1]), tirx.floormod(task, outer[1])
        place: list[Any] = []
        rest = step
        for extent in reversed(outer[2:]):
            place.insert(0, tirx.floormod(rest, extent))
            rest = tirx.floordiv(rest, extent)
        with T.serial(0, rows) as row:
            filter_ = tirx.min(tile * rows + row, window.filters - 1) + group * window.filters
            for part in range(unit):
                index = (group, tile, *place, row, part)
                found = packed[index].astype("int16")
                if zero is not None:
                    found = found - zero[0 if dims(zero) == [1] else filter_].astype("int16")
                    if window.of_taps and part >= window.kernel[-1] % unit > 0:  # the lines have something there
                        found = tirx.Select(place[-2] < outer[-2] - 1, found, const(0, "int16"))
                T.buffer_store(weights, found, index)


def compute(
    weights: Any,
    lines: Any,
    window: Window,
    *,
    shift: Callable[[], Any] | None = None,
    sums_of_filters: Any = None,
    requantize: Callable[[Any, Any], Any] | None = None,
) -> Any:
    """The sums in int32, [N, groups * filters, *window.kept].

    Args:
        shift: what the lines are too large by, in int32; then `sums_of_filters` are from `filter_sums`.
        requantize: what becomes of a sum of an output channel.
    """
    reduced = [te.reduce_axis((0, extent), "tap") for extent in window.taps]
    k, part = te.reduce_axis((0, window.units), "k"), te.reduce_axis((0, window.unit), "part")
    filters = window.tiles[1] * window.rows
    shape = (window.batch, window.groups, filters, *window.places)

    def product(i: Any, g: Any, o: Any, *place: Any) -> Any:
        rows = [
            at * stride + tap * dilation
            for at, stride, tap, dilation in zip(
                place[:-1], window.strides, reduced[:-1], window.dilations, strict=False
            )
        ]
        remainder, start = window.column(reduced[-1])
        left = weights[(g, tirx.floordiv(o, window.rows), *reduced, k, tirx.floormod(o, window.rows), part)]
        right = lines[(i * window.groups + g, k, *rows, remainder, place[-1] + start, part)]
        return te.sum(dots.product(left, right), axis=[*reduced, k, part])

    attributes = {RULE: NAME, "graphopt.rows": window.rows, "graphopt.width": window.width}
    sums = te.compute(shape, product, name=NAME, attrs=attributes)

    def total(i: Any, g: Any, o: Any, *place: Any) -> Any:
        found, channel = sums[(i, g, o, *place)], g * window.filters + tirx.min(o, window.filters - 1)
        if shift is not None:
            found = found - shift() * sums_of_filters[channel]
        return found if requantize is None else requantize(found, channel)

    if requantize is not None:
        kept = te.compute(shape, total, name=REQUANTIZE)

    def finish(i: Any, channel: Any, *place: Any) -> Any:
        at = (i, tirx.floordiv(channel, window.filters), tirx.floormod(channel, window.filters), *place)
        return total(*at) if requantize is None else kept(*at)

    return te.compute((window.batch, window.groups * window.filters, *window.kept), finish, name="finish")


def schedule(sch: s_tir.Schedule, anchor: Block, machine: CpuMachine) -> Any:
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
