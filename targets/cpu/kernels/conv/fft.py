"""Convolution by Fourier transforms of n x n tiles on the channel-blocked layout, in three kernels.

    V[t, ci, p, :]  = the transform of input tile p, with the sums that Gauss's product needs
    M[t, co, p, :]  = sum over ci, i of V[t, ci, p, i] * U[t, co, ci, i, :]
    y[co, tile p]   = the inverse transform of M, without what wraps around, + bias

The second kernel is the GEMM of the Winograd convolution: `graphopt.ops.fft` explains the taps t. A group of channels
has taps of its own, t * groups + group. The transforms are straight-line code over one vector of channels: first along
rows, each row's n inputs and n results at once, then along columns, whose code is emitted once and serves all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import s_tir, te, tirx
from tvm.ir import Expr
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from graphopt.ops.fft import complex_frequencies, outputs, taps
from graphopt.targets.common.kernels.blocks import RULE, Block, blocks_of, const, dims
from graphopt.targets.cpu.kernels.conv.dft import Dft
from graphopt.targets.cpu.machine import CpuMachine

OUTPUT, TILES = "fft_output", "fft_tiles"
"""The schedule rule of the inverse transform, and its block."""

LONGEST = 32
"""The longest transform that is emitted as straight-line code."""

CACHE_LINE, CACHE_SETS = 64, 64
"""Bytes of a line, and sets of the first-level cache; 32 or 48 KiB have as many, in 8 or 12 ways."""

TAPS_OF_A_SET = 64
"""A tile's lines in one set from which on they cost more than index arithmetic; measured with tiles of 8 to 18."""


def tile_grid(out: tuple[int, int], n: int, kernel: tuple[int, int]) -> tuple[int, int]:
    """Tiles that cover the output, in rows and columns."""
    rows, columns = outputs(n, kernel)
    return -(-out[0] // rows), -(-out[1] // columns)


def _side(n: int, column: Expr) -> tuple[Expr, Expr]:
    """Taps of column 0 (column = 0) or n / 2 (1): its first complex frequency, and its first real one."""
    inner = n // 2 - 1
    return (n + column) * inner, 3 * complex_frequencies(n) + 2 * column


def turns(n: int, tiles: int, blocks: tuple[int, int], itemsize: int, lanes: int) -> bool:
    """Whether each tap has its tiles at places of its own, the tile at (tile + tap) modulo tiles.

    The values of a tile are (channel blocks x tiles) vectors apart. A distance of a multiple of a power of two maps
    them all to few sets of the first-level cache, which then holds none; the GEMM does not depend on the order of
    a tap's tiles. Where the sets suffice, the arithmetic would cost more.

    Args:
        n: the tile's length.
        tiles: tiles of an image.
        blocks: channel blocks of a group, of the input and of the output.
        itemsize: bytes of a number.
        lanes: numbers of a block.
    """
    lines = [max(1, count * tiles * lanes * itemsize // CACHE_LINE) for count in blocks]
    return any(taps(n) * math.gcd(distance, CACHE_SETS) > TAPS_OF_A_SET * CACHE_SETS for distance in lines)


@dataclass(frozen=True, slots=True)
class _Taps:
    """Consecutive taps of one tile, from `start` on; `at` is the tile's position among the `count` tiles."""

    start: Expr
    at: Expr
    count: int
    turned: bool

    @staticmethod
    def of(start: Expr, tile: Expr, count: int, turned: bool) -> _Taps:
        """The taps from `start` on."""
        return _Taps(start, T.bind(tirx.floormod(tile + start, count)) if turned else tile, count, turned)

    def index(self, offset: int) -> tuple[Expr, Expr]:
        """A tap, and the place of the tile among its tiles."""
        if not self.turned:
            return self.start + offset, self.at
        moved = self.at + offset % self.count
        return self.start + offset, tirx.Select(moved >= self.count, moved - self.count, moved)


def transform_input(
    x: te.Tensor,
    n: int,
    kernel: tuple[int, int],
    pads: tuple[int, int, int, int],
    out: tuple[int, int],
    groups: int,
    turned: bool,
) -> te.Tensor:
    """V[taps * groups, N, CI / groups, tiles, b] of x[N, CI, H, W, b]; reads outside the image give zero."""
    batch, ci, h, w, b = dims(x)
    rows, columns = tile_grid(out, n, kernel)
    step = outputs(n, kernel)
    group_ci, half, count = ci // groups, n // 2, complex_frequencies(n)
    shape = (taps(n) * groups, batch, group_ci, rows * columns, b)
    dtype = str(x.dtype)

    def tile(source: tirx.Buffer, v: tirx.Buffer, image: Expr, channel: Expr, p: Expr) -> None:
        passed = T.alloc_buffer((n, n, b), dtype, scope="local")
        top = T.bind(tirx.floordiv(p, columns) * step[0] - pads[0])
        left = T.bind(tirx.floormod(p, columns) * step[1] - pads[1])

        def along(r: Expr, numbers: Callable[[int, Expr], Expr]) -> None:
            with T.vectorized(0, b) as lane:
                frequencies = Dft(T.bind).real([T.bind(numbers(s, lane)) for s in range(n)])
                T.buffer_store(passed, frequencies[0][0], [r, 0, lane])
                T.buffer_store(passed, frequencies[half][0], [r, 1, lane])
                for k in range(1, half):
                    for part in range(2):
                        T.buffer_store(passed, frequencies[k][part], [r, 2 * k + part, lane])

        with T.serial(0, n) as r:
            row = T.bind(top + r)
            with T.If(tirx.all(row >= 0, row < h, left >= 0, left + n <= w)):
                with T.Then():
                    along(r, lambda s, lane: source[image, channel, row, left + s, lane])
                with T.Else():
                    line = T.alloc_buffer((n, b), dtype, scope="local")
                    with T.serial(0, n) as s, T.If(tirx.all(row >= 0, row < h, left + s >= 0, left + s < w)):
                        with T.Then(), T.vectorized(0, b) as lane:
                            T.buffer_store(line, source[image, channel, row, left + s, lane], [s, lane])
                        with T.Else(), T.vectorized(0, b) as lane:
                            T.buffer_store(line, const(0, dtype), [s, lane])
                    along(r, lambda s, lane: line[s, lane])

        group, own = tirx.floordiv(channel, group_ci), tirx.floormod(channel, group_ci)

        def write(first: _Taps, offset: int, value: Expr, lane: Expr) -> None:
            tap, place = first.index(offset)
            T.buffer_store(v, value, [tap * groups + group, image, own, place, lane])

        def write_complex(first: _Taps, offset: int, value: tuple[Expr, Expr], lane: Expr) -> None:
            write(first, offset, value[0] + value[1], lane)
            write(first, offset + count, value[0], lane)
            write(first, offset + 2 * count, value[1], lane)

        with T.serial(0, half - 1) as k:
            first = _Taps.of(k * n, p, rows * columns, turned)
            with T.vectorized(0, b) as lane:
                column = [tuple(T.bind(passed[r, 2 * k + 2 + part, lane]) for part in range(2)) for r in range(n)]
                for f, value in enumerate(Dft(T.bind).complex(column, -1, n)):
                    write_complex(first, f, value, lane)
        with T.serial(0, 2) as k:
            first, real = (_Taps.of(tap, p, rows * columns, turned) for tap in _side(n, k))
            with T.vectorized(0, b) as lane:
                spectrum = Dft(T.bind).real([T.bind(passed[r, k, lane]) for r in range(n)])
                write(real, 0, spectrum[0][0], lane)
                write(real, 1, spectrum[half][0], lane)
                for f in range(1, half):
                    write_complex(first, f - 1, spectrum[f], lane)

    def tasks(ins: Sequence[tirx.Buffer], outs: Sequence[tirx.Buffer]) -> tirx.Stmt:
        with IRBuilder() as builder:
            with T.parallel(0, batch * ci * rows * columns) as task:
                place, p = T.bind(task // (rows * columns)), T.bind(task % (rows * columns))
                tile(ins[0], outs[0], T.bind(place // ci), T.bind(place % ci), p)
            return builder.get()

    return te.extern([shape], [x], tasks, dtype=[dtype], name="fft_input")


def transform_output(
    mm: te.Tensor, bias: te.Tensor, n: int, kernel: tuple[int, int], out: tuple[int, int], groups: int, turned: bool
) -> te.Tensor:
    """y[N, CO, OH, OW, b] from M[taps * groups, N, CO / groups, tiles, b] and bias[CO, b]."""
    _, batch, group_co, p_count, b = dims(mm)
    co, half, count = group_co * groups, n // 2, complex_frequencies(n)
    rows, columns = outputs(n, kernel)
    _, tile_columns = tile_grid(out, n, kernel)
    dtype = str(mm.dtype)

    def tile(source: tirx.Buffer, result: tirx.Buffer, image: Expr, channel: Expr, p: Expr) -> None:
        passed = T.sblock_alloc_buffer((rows, n, b), dtype, scope="local")
        group, own = tirx.floordiv(channel, group_co), tirx.floormod(channel, group_co)

        def read(first: _Taps, offset: int, lane: Expr) -> Expr:
            tap, place = first.index(offset)
            return T.bind(source[tap * groups + group, image, own, place, lane])

        def read_complex(first: _Taps, offset: int, lane: Expr) -> tuple[Expr, Expr]:
            k1, k2, k3 = (read(first, offset + part * count, lane) for part in range(3))
            return T.bind(k1 - k3), T.bind(k1 + k2)

        with T.serial(0, half - 1) as k:
            first = _Taps.of(k * n, p, p_count, turned)
            with T.vectorized(0, b) as lane:
                column = [read_complex(first, f, lane) for f in range(n)]
                for r, value in enumerate(Dft(T.bind).complex(column, 1, rows)):
                    for part in range(2):
                        T.buffer_store(passed, value[part], [r, 2 * k + 2 + part, lane])
        with T.serial(0, 2) as k:
            first, real = (_Taps.of(tap, p, p_count, turned) for tap in _side(n, k))
            with T.vectorized(0, b) as lane:
                inner = [read_complex(first, f - 1, lane) for f in range(1, half)]
                column = [(read(real, 0, lane), None), *inner, (read(real, 1, lane), None)]
                for r, value in enumerate(Dft(T.bind).real_inverse(column, n, rows)):
                    T.buffer_store(passed, value, [r, k, lane])
        with T.serial(0, rows) as r, T.vectorized(0, b) as lane:
            values = [T.bind(passed[r, k, lane]) for k in range(n)]
            line = [(values[0], None), *zip(values[2::2], values[3::2], strict=True), (values[1], None)]
            for s, value in enumerate(Dft(T.bind).real_inverse(line, n, columns)):
                T.buffer_store(result, value, [image, channel, p, r, s, lane])

    shape = (batch, co, p_count, rows, columns, b)

    def blocks(ins: Sequence[tirx.Buffer], outs: Sequence[tirx.Buffer]) -> tirx.Stmt:
        """A block for each tile. The last three loops, of one iteration, tell `compute_at` what the block writes."""
        with IRBuilder() as builder:
            grid = (batch, co, p_count, 1, 1, 1)
            with T.grid(*grid) as loops, T.sblock(TILES):
                image, channel, p, *part = (
                    T.axis.spatial(extent, loop) for extent, loop in zip(grid, loops, strict=True)
                )
                T.reads(ins[0][tuple(slice(0, extent) for extent in dims(mm))])
                ends = [slice(v * extent, v * extent + extent) for v, extent in zip(part, shape[3:], strict=True)]
                T.writes(outs[0][(image, channel, p, *ends)])
                tile(ins[0], outs[0], image, channel, p)
            return builder.get()

    tiles = te.extern([shape], [mm], blocks, dtype=[dtype], name="fft_output", attrs={RULE: OUTPUT})

    def finish(i: Expr, o: Expr, y: Expr, z: Expr, lane: Expr) -> Expr:
        place = tirx.floordiv(y, rows) * tile_columns + tirx.floordiv(z, columns)
        return tiles[i, o, place, tirx.floormod(y, rows), tirx.floormod(z, columns), lane] + bias[o, lane]

    return te.compute((batch, co, *out, b), finish, name="finish")


def _unwrapped(sch: s_tir.Schedule, anchor: Block) -> s_tir.Schedule:
    """A schedule of the same function without the block that TE puts around hand-written loops."""
    function = sch.mod["main"]
    realize = function.body
    root = realize.block
    parts = list(root.body.seq) if isinstance(root.body, tirx.SeqStmt) else [root.body]
    parts = [
        part.block.body if isinstance(part, s_tir.SBlockRealize) and str(part.block.name_hint) == anchor.name else part
        for part in parts
    ]
    body = s_tir.SBlock(
        [], [], [], root.name_hint, tirx.SeqStmt(parts) if len(parts) > 1 else parts[0], None, root.alloc_buffers
    )
    return s_tir.Schedule(function.with_body(s_tir.SBlockRealize([], True, body)))


def schedule_output(sch: s_tir.Schedule, anchor: Block, machine: CpuMachine) -> s_tir.Schedule:
    """One row of tiles per task; the epilogue runs on each tile as it is stored."""
    sch = _unwrapped(sch, anchor)
    tiles, *rest, last = blocks_of(sch)
    for block in rest:
        sch.compute_inline(block.rv)
    rows, columns = (int(extent) for extent in sch.get(tiles.rv).writes[0].source.shape[3:5])
    n, o, y, z, lane = sch.get_loops(last.rv)
    y_out, y_in = sch.split(y, [None, rows])
    z_out, z_in = sch.split(z, [None, columns])
    sch.reorder(n, o, y_out, z_out, y_in, z_in, lane)
    sch.compute_at(tiles.rv, z_out, preserve_unit_loops=True)
    sch.set_scope(tiles.rv, 0, "local")
    sch.parallel(sch.fuse(n, o, y_out))
    sch.vectorize(lane)
    return sch
