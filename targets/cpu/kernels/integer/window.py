"""The shapes of an exact convolution of bytes (`conv.py`), and the register tile that suits them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from tvm import tirx
from tvm.ir import Expr

from graphopt.targets.common.kernels.blocks import round_up
from graphopt.targets.cpu.kernels.integer import dots
from graphopt.targets.cpu.kernels.tiling import padded_tile
from graphopt.targets.cpu.machine import CpuMachine

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
    unit: int
    rows: int = 1
    width: int = 1
    joined: bool = False

    @property
    def pitch(self) -> int:
        """Columns from one joined row to the next: the output's, and those that its last window reaches beyond."""
        return self.out[-1] + (self.kernel[-1] - 1) * self.dilations[-1]

    @property
    def may_join(self) -> bool:
        """Whether the rows of the last two axes can be joined into one."""
        return len(self.out) > 1 and not self.flat and not self.of_taps and self.strides[-2:] == (1, 1)

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
        """The output's positions along the axes of `taps`."""
        if self.joined:
            return (*self.out[:-2], (self.out[-2] - 1) * self.pitch + self.out[-1])
        return (math.prod(self.out),) if self.flat else self.out

    @property
    def places(self) -> tuple[int, ...]:
        """`kept`, with the last axis rounded up to full tiles."""
        return (*self.kept[:-1], round_up(self.kept[-1], self.width))

    @property
    def step(self) -> int:
        """Columns between neighbouring lanes."""
        return 1 if self.flat else self.strides[-1]

    def column(self, *taps: tirx.IterVar) -> tuple[Expr | int, Expr | int]:
        """The remainder of the columns that a tap reads, and its first column; `taps` is the tap on all axes."""
        tap = taps[-1]
        if self.flat:
            return 0, 0
        if self.joined:
            return 0, taps[-2] * (self.dilations[-2] * self.pitch) + tap * self.dilations[-1]
        at = tap * (self.unit if self.of_taps else 1) * self.dilations[-1]
        return (0, at) if self.step == 1 else (tirx.floormod(at, self.step), tirx.floordiv(at, self.step))

    @property
    def remainders(self) -> int:
        """Remainders of the columns that taps read: one where a single unit holds all taps of a row."""
        return 1 if self.of_taps and self.taps[-1] == 1 else self.step

    @property
    def lines(self) -> tuple[int, ...]:
        """Shape of the rewritten image: [batch * groups, units, *rows and their padding, remainders, n, unit]."""
        reach = [(t - 1) * d for t, d in zip(self.kernel, self.dilations, strict=True)]
        rows = [] if self.flat else [(o - 1) * s + r + 1 for o, s, r in zip(self.out, self.strides, reach, strict=True)]
        farthest = (self.taps[-1] - 1) * self.unit * self.dilations[-1] if self.of_taps else reach[-1]
        farthest = 0 if self.flat else farthest // self.step
        columns = self.places[-1] + farthest
        if self.joined:
            *rows, joined, _ = rows
            columns = max(joined * self.pitch, columns + reach[-2] * self.pitch)
            return (self.batch * self.groups, self.units, *rows, 1, columns, self.unit)
        return (self.batch * self.groups, self.units, *rows[:-1], self.remainders, columns, self.unit)

    @property
    def apart(self) -> tuple[int, ...]:
        """Shape of `lines` with joined rows apart, up to the rows that the image fills."""
        if not self.joined:
            return self.lines
        rows = self.out[-2] + (self.kernel[-2] - 1) * self.dilations[-2]
        return (*self.lines[:-3], rows, 1, self.pitch, self.unit)

    @property
    def tiles(self) -> tuple[int, ...]:
        """Shape of the packed weights: [groups, tiles of filters, *taps, units, rows, unit]."""
        return (self.groups, math.ceil(self.filters / self.rows), *self.taps, self.units, self.rows, self.unit)

    @property
    def dtypes(self) -> tuple[str, str]:
        """Dtypes of the weights and of the lines, as they are multiplied."""
        return ("int16", "int16") if self.unit == dots.WORDS else ("int8", "uint8")


def choose_tile(window: Window, machine: CpuMachine) -> Window:
    """The window with the tile that has the best estimate, its rows joined where that is a fifth better."""
    tiled, cost = _tiled(window, machine)
    if window.may_join:
        joined, joined_cost = _tiled(replace(window, joined=True), machine)
        if joined_cost < 0.8 * cost:
            return joined
    return tiled


def _tiled(window: Window, machine: CpuMachine) -> tuple[Window, float]:
    """The best tile and its cycles."""
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
    return replace(window, rows=best[0], width=best[1]), best_cost * math.prod(window.kept[:-1])
