"""The image as `conv.py` reads it: lines of units, padding included, written by a kernel of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tvm import te, tirx
from tvm.ir import Expr
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from graphopt.targets.common.kernels.blocks import const, dims
from graphopt.targets.cpu.kernels.integer import dots
from graphopt.targets.cpu.kernels.integer.gemm import unsigned
from graphopt.targets.cpu.kernels.integer.window import Window


def prepare(
    x: te.Tensor,
    packed: te.Tensor | None,
    window: Window,
    x_zero: te.Tensor | None = None,
    w_zero: te.Tensor | None = None,
) -> list[te.Tensor]:
    """The image in lines, and with units of words the weights as int16 less their zero point.

    Args:
        x: [N, C, *image] of bytes.
        packed: from `pack`; None with units of bytes.
        x_zero: [1].
        w_zero: [1] or [groups * filters].
    """
    given = [tensor for tensor in (x, packed, x_zero, w_zero) if tensor is not None]

    def body(ins: Sequence[tirx.Buffer], outs: Sequence[tirx.Buffer]) -> tirx.Stmt:
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
    results = te.extern(shapes, given, body, dtype=kinds, name="prepare")
    return [results] if packed is None else list(results)


class _Lines:
    """Emits the loops that rewrite an image: a task for each unit of channels and row."""

    def __init__(self, x: tirx.Buffer, zero: tirx.Buffer | None, lines: tirx.Buffer, window: Window) -> None:
        self.x, self.zero, self.lines, self.window = x, zero, lines, window
        self.dtype = window.dtypes[1]
        self.extents = window.apart

    def write(self) -> None:
        window, extents = self.window, self.extents
        with T.parallel(0, math.prod(extents[:-3])) as task:
            place: list[Expr] = []
            rest = task
            for extent in reversed(extents[2:-3]):
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
                for row, extent, total, pad in zip(self.rows, window.image, extents[2:-3], window.pads, strict=False)
                for condition in ([row >= 0] if pad else []) + ([row < extent] if total - pad > extent else [])
            ]
            if not inside:
                self._all_channels(step)
                return
            with T.If(tirx.all(*inside)):
                with T.Then():
                    self._all_channels(step)
                with T.Else(), T.serial(0, extents[-3]) as remainder, T.serial(0, extents[-2]) as n:
                    for part in range(window.unit):
                        self._store(self.outside, remainder, n, part)

    def _centre(self) -> Expr:
        """The zero point in the type of the lines."""
        if self.window.unit == dots.WORDS:
            return const(0, "int16") if self.zero is None else self.zero[0].astype("int16")
        if self.zero is None:
            return const(0 if str(self.x.dtype) == "uint8" else 128, "uint8")
        return unsigned(self.zero[0])

    def _all_channels(self, step: Expr) -> None:
        """Emit a row for all units of channels, of which the last may be partial."""
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
        window, total = self.window, self.extents[-2]
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
                        self._store(stored, remainder, n, part)

    def _store(self, value: Expr, remainder: Expr | int, n: Expr, part: int) -> None:
        if self.window.joined:
            *index, row = self.index
            T.buffer_store(self.lines, value, (*index, 0, row * self.window.pitch + n, part))
        else:
            T.buffer_store(self.lines, value, (*self.index, remainder, n, part))

    def _inside(self, offset: int) -> tuple[int, int]:
        """The range of columns of a remainder, which starts at `offset` of the image, that lie in the image."""
        window, total = self.window, self.extents[-2]
        if window.flat:
            return 0, window.kept[0]
        first = min(total, max(0, -(offset // window.step)))
        return first, max(first, min(total, (window.image[-1] - 1 - offset) // window.step + 1))

    def _value(self, part: int, at: Expr) -> Expr:
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


def _write_weights(packed: tirx.Buffer, zero: tirx.Buffer | None, weights: tirx.Buffer, window: Window) -> None:
    *outer, rows, unit = window.tiles
    with T.parallel(0, outer[0] * outer[1]) as task, T.serial(0, math.prod(outer[2:])) as step:
        group, tile = tirx.floordiv(task, outer[1]), tirx.floormod(task, outer[1])
        place: list[Expr] = []
        rest = step
        for extent in reversed(outer[2:]):
            place.insert(0, tirx.floormod(rest, extent))
            rest = tirx.floordiv(rest, extent)
        with T.serial(0, rows) as row:
            filter_ = tirx.min(tile * rows + row, window.filters - 1) + group * window.filters
            for part in range(unit):
                index = (group, tile, *place, row, part)
                value = packed[index].astype("int16")
                if zero is not None:
                    value = value - zero[0 if dims(zero) == [1] else filter_].astype("int16")
                    if window.of_taps and part >= window.kernel[-1] % unit > 0:  # the lines hold data there
                        value = tirx.Select(place[-2] < outer[-2] - 1, value, const(0, "int16"))
                T.buffer_store(weights, value, index)
