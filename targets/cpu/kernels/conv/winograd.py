"""Winograd convolution F(m x m, 3 x 3) on the channel-blocked layout, in three kernels.

    V[t, ci, p, :]  = (B^T d B)[t]                      input tiles, t = (m+2)^2 taps, p tiles
    M[t, co, p, :]  = sum over ci, i of V[t, ci, p, i] * U[t, co, ci, i, :]
    y[co, tile p]   = A^T M A + bias

Along one axis, F(m, r) of a kernel of one row or column: V = B^T d with m + r - 1 taps, y = A^T M. Tiles then lie along
that axis, and the tiles of all images are one range of places: a row has few.

Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks" (2016). The transform matrices are compile-time
constants: their zeros and ones disappear from the code.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import s_tir, te, tirx
from tvm.ir import Expr
from tvm.s_tir.schedule import LoopRV, SBlockRV

from graphopt.targets.common.kernels.blocks import RULE, Block, blocks_of, const, dims, inline_after, round_up
from graphopt.targets.cpu.kernels import prefetch
from graphopt.targets.cpu.kernels.conv.direct import tile_shape
from graphopt.targets.cpu.machine import CpuMachine

INPUT, PRODUCT, OUTPUT = "winograd_input", "winograd_product", "winograd_output"

Matrix = NDArray[np.float64]
TILE = "graphopt.tile"
"""Block annotation: the spelling of the tile, for the schedule."""


@dataclass(frozen=True, slots=True)
class Tile:
    """`columns x vectors` accumulators of the GEMM; written "14x2".

    With `rows`, one fused kernel runs over blocks of that many rows of tiles (`winograd_fused`): "fused2:14x2".
    """

    columns: int
    vectors: int
    rows: int = 0

    def __str__(self) -> str:
        """The spelling that `parse` reads."""
        return f"{f'fused{self.rows}:' if self.rows else ''}{self.columns}x{self.vectors}"

    @staticmethod
    def parse(text: str) -> Tile:
        """The inverse of `str`.

        Raises:
            ValueError: `text` is no such spelling.
        """
        match = re.fullmatch(r"(?:fused([1-9][0-9]{0,2}):)?([1-9][0-9]{0,2})x([1-9])", text)
        if match is None:
            raise ValueError(f"{text!r} is no tile of a Winograd convolution (such as 14x2 or fused2:14x2)")
        return Tile(int(match[2]), int(match[3]), int(match[1] or 0))


def entry(matrix: Matrix, row: Expr, column: tirx.IterVar, dtype: str) -> Expr:
    """matrix[row][column] for loop variables: a tree of selects that unrolling folds to a constant."""
    result = const(0, dtype)
    for i in range(matrix.shape[0]):
        for j in range(matrix.shape[1]):
            if matrix[i, j]:
                result = tirx.Select(tirx.all(row == i, column == j), const(float(matrix[i, j]), dtype), result)
    return result


@dataclass(frozen=True, slots=True)
class Blocks:
    """The tiles of an output plane, cut into `count` blocks of full rows of tiles, or `images` planes in one block."""

    m: tuple[int, int]
    """Rows and columns of a tile."""
    columns: int
    rows: int
    count: int
    places: int
    """Places of a block, with those past its last tile."""
    images: int = 1

    @staticmethod
    def of(out: tuple[int, int], m: tuple[int, int], rows: int = 0, multiple: int = 1, images: int = 1) -> Blocks:
        """Blocks of `rows` rows of tiles, or one of all, of `images` planes; places are a multiple of `multiple`."""
        height, columns = -(-out[0] // m[0]), -(-out[1] // m[1])
        rows = min(rows, height) or height
        return Blocks(m, columns, rows, -(-height // rows), round_up(images * rows * columns, multiple), images)

    @property
    def tiles(self) -> int:
        """Tiles of a block."""
        return self.images * self.rows * self.columns

    def apart(self, tap: int) -> Blocks:
        """Add one place where a tile's taps, `tap` bytes apart per place, would all map to one cache set.

        A transform writes all of them; the first-level cache holds 8 to 12 lines whose addresses differ by 4 KiB.
        """
        return replace(self, places=self.places + 1) if self.places * tap % 4096 == 0 else self

    def place(self, index: Expr, p: Expr) -> tuple[Expr, Expr, Expr]:
        """(image, row, column) of the first output of tile `p` of block `index`, counted over all images."""
        image, block = index, 0
        if self.count > 1:
            image, block = tirx.floordiv(index, self.count), tirx.floormod(index, self.count)
        if self.images > 1:  # places past the last tile have no image
            image = tirx.min(tirx.floordiv(p, self.rows * self.columns), self.images - 1)
            p = tirx.floormod(p, self.rows * self.columns)
        row = (block * self.rows + tirx.floordiv(p, self.columns)) * self.m[0]
        return image, row, tirx.floormod(p, self.columns) * self.m[1]

    def at_row(self, image: Expr, row: Expr, column: Expr) -> tuple[Expr | int, Expr]:
        """(block of all images, place in it) of the tile of an output pixel."""
        height = self.rows * self.m[0]
        if self.count > 1:
            image, row = image * self.count + tirx.floordiv(row, height), tirx.floormod(row, height)
        place = tirx.floordiv(row, self.m[0]) * self.columns + tirx.floordiv(column, self.m[1])
        return (0, image * self.rows * self.columns + place) if self.images > 1 else (image, place)


Pair = tuple[Matrix, Matrix]
"""The matrices that transform rows and columns; the 1 x 1 identity along an axis that is not transformed."""


def transform_input(
    x: te.Tensor, blocks: Blocks, pads: tuple[int, int, int, int], bt: Pair, rule: str = INPUT
) -> te.Tensor:
    """V[taps, blocks of all images, CI, places, b] of x[N, CI, H, W, b]; reads outside the image give zero."""
    n, ci, h, w, b = dims(x)
    rows, columns = len(bt[0]), len(bt[1])
    n = n * blocks.count // blocks.images

    def load(i: Expr, c: Expr, p: Expr, u: Expr, v: Expr, lane: Expr) -> Expr:
        image, row, column = blocks.place(i, p)
        row, column = row + u - pads[0], column + v - pads[1]
        inside = tirx.all(row >= 0, row < h, column >= 0, column < w)
        return tirx.if_then_else(inside, x[image, c, row, column, lane], const(0, x.dtype))

    d = te.compute((n, ci, blocks.places, rows, columns, b), load, name="tile")
    ra, rb = te.reduce_axis((0, rows), "a"), te.reduce_axis((0, columns), "b")
    if columns == 1:
        return te.compute(
            (rows, n, ci, blocks.places, b),
            lambda t, i, c, p, lane: te.sum(d[i, c, p, ra, 0, lane] * entry(bt[0], t, ra, x.dtype), axis=[ra]),
            name="transform",
            attrs={RULE: rule},
        )
    half = d
    if rows > 1:
        half = te.compute(
            (n, ci, blocks.places, rows, columns, b),
            lambda i, c, p, u, v, lane: te.sum(entry(bt[0], u, ra, x.dtype) * d[i, c, p, ra, v, lane], axis=[ra]),
            name="half_input",
        )
    return te.compute(
        (rows * columns, n, ci, blocks.places, b),
        lambda t, i, c, p, lane: te.sum(
            half[i, c, p, tirx.floordiv(t, columns), rb, lane] * entry(bt[1], tirx.floormod(t, columns), rb, x.dtype),
            axis=[rb],
        ),
        name="transform",
        attrs={RULE: rule},
    )


def schedule_input(sch: s_tir.Schedule, anchor: Block, machine: CpuMachine) -> None:
    """One task per (image, channel block, tile); everything inside a tile is unrolled straight-line vector code."""
    t, n, c, p, lane, rb = sch.get_loops(anchor.rv)
    sch.reorder(n, c, p, t, rb, lane)
    tile = sch.fuse(c, p)
    for block in before_transform(sch):
        sch.compute_at(block, tile, preserve_unit_loops=True)
        sch.set_scope(block, 0, "local")
    sch.parallel(sch.fuse(n, tile))
    unroll_transform(sch, anchor.rv, anchor.reduce[0])


def has(sch: s_tir.Schedule, name: str) -> bool:
    """Whether the function has a block of this name; transforms along one axis lack the blocks of the other."""
    return any(block.name == name for block in blocks_of(sch))


def before_transform(sch: s_tir.Schedule) -> tuple[str, ...]:
    """The producers of the input transform, the last one first."""
    return ("half_input", "tile") if has(sch, "half_input") else ("tile",)


def unroll_transform(sch: s_tir.Schedule, transform: SBlockRV, size: int) -> None:
    """Straight-line code of the transform of one tile, whose innermost loops are tap, its sum and the lane."""
    t, rb, lane = sch.get_loops(transform)[-3:]
    both = has(sch, "half_input")
    for loop in (*(sch.split(t, [size, size]) if both else [t]), rb):
        sch.unroll(loop)
    sch.vectorize(lane)
    if both:
        *_, hu, hv, half_lane, ra = sch.get_loops("half_input")
        sch.reorder(hu, hv, ra, half_lane)
        for loop in (hu, hv, ra):
            sch.unroll(loop)
        sch.vectorize(half_lane)
    *_, du, dv, tile_lane = sch.get_loops("tile")
    sch.unroll(du)
    sch.unroll(dv)
    sch.vectorize(tile_lane)
    if both:
        zero_unrolled(sch, sch.decompose_reduction("half_input", ra), 2)
    zero_unrolled(sch, sch.decompose_reduction(transform, rb), 0)


def zero_unrolled(sch: s_tir.Schedule, start: SBlockRV, unrolled: int) -> None:
    """Unroll the loops before the innermost one of a block that clears accumulators."""
    loops = sch.get_loops(start)
    for loop in loops[len(loops) - 1 - unrolled : -1]:
        sch.unroll(loop)
    sch.vectorize(loops[-1])


def product(
    v: te.Tensor,
    u: te.Tensor,
    machine: CpuMachine,
    tile: Tile | None = None,
    rule: str = PRODUCT,
    tiles: int | None = None,
) -> te.Tensor:
    """M[t, N, CO, tiles, b] from V[t, N, CI, places, b] and U[t, CO, CI, b, b].

    `tile` None takes the one with the best estimate; its vectors divide CO. `tiles` None are all places.
    """
    taps, n, ci, places, bi = dims(v)
    p = tiles or places
    _, co, _, _, b = dims(u)
    tile = tile or Tile(*tile_shape(p, co, machine))
    computed = round_up(p, tile.columns)
    rc, ri = te.reduce_axis((0, ci), "ci"), te.reduce_axis((0, bi), "i")

    def element(t: Expr, i: Expr, o: Expr, q: Expr, lane: Expr) -> Expr:
        at = q if computed == p else tirx.min(q, p - 1)
        return te.sum(v[t, i, rc, at, ri] * u[t, o, rc, ri, lane], axis=[rc, ri])

    sums = te.compute((taps, n, co, computed, b), element, name="product", attrs={RULE: rule, TILE: str(tile)})
    return te.compute((taps, n, co, p, b), lambda t, i, o, q, lane: sums[t, i, o, q, lane], name="crop")


def schedule_product(sch: s_tir.Schedule, anchor: Block, machine: CpuMachine) -> tirx.PrimFunc:
    """The register tile of the direct convolution, over tiles instead of columns; parallel over (tap, channel tile)."""
    _, images, _, computed, lanes = anchor.spatial
    tile = Tile.parse(str(sch.get(anchor.rv).annotations[TILE]))
    last = inline_after(sch, anchor)
    t, n, o, q, lane = sch.get_loops(last)
    o_out, o_in = sch.split(o, [None, tile.vectors])
    q_out, q_in = sch.split(q, [None, tile.columns])
    sch.reorder(t, o_out, n, q_out, o_in, q_in, lane)
    task = sch.fuse(t, o_out)
    sch.compute_at(anchor.rv, q_out, preserve_unit_loops=True)
    sch.set_scope(anchor.rv, 0, "local")
    sch.parallel(task)
    for loop in (o_in, q_in):
        sch.unroll(loop)
    sch.vectorize(lane)
    step = schedule_tile_product(sch, anchor.rv)
    prefetch.mark(sch, step)
    panel, across = tile.vectors * math.prod(anchor.reduce) * lanes, computed // tile.columns
    weights = prefetch.weights_of(sch, anchor.rv)
    return prefetch.insert(
        sch,
        prefetch.Stream(weights, panel, images * across, 3, lambda task, image, place: (task, image * across + place)),
    )


UNROLL = 4
"""Unrolled channels of a sum of products."""


def schedule_tile_product(sch: s_tir.Schedule, block: SBlockRV) -> LoopRV:
    """The register tile, whose innermost loops are channel vectors, tiles, lane and the two sums.

    Returns the loop whose body are `UNROLL` steps of the sum.
    """
    tile_o, tile_q, tile_lane, rc, ri = sch.get_loops(block)[-5:]
    i_out, i_in = sch.split(ri, [None, UNROLL])
    sch.reorder(rc, i_out, i_in, tile_q, tile_o, tile_lane)  # a broadcast serves every vector, then dies
    for loop in (i_in, tile_o, tile_q):
        sch.unroll(loop)
    sch.vectorize(tile_lane)
    zero_unrolled(sch, sch.decompose_reduction(block, rc), 2)
    return i_out


def transform_output(
    mm: te.Tensor,
    bias: te.Tensor,
    blocks: Blocks,
    out: tuple[int, int],
    at: Pair,
    attributes: dict[str, Any] | None = None,
) -> te.Tensor:
    """y[N, CO, OH, OW, b] = A^T M A + bias from M[taps, blocks of all images, CO, places, b] and bias[CO, b]."""
    _, n, co, _, b = dims(mm)
    (m, columns_m), rows, columns = blocks.m, at[0].shape[1], at[1].shape[1]
    ra, rb = te.reduce_axis((0, rows), "a"), te.reduce_axis((0, columns), "b")
    attributes = {RULE: OUTPUT, "graphopt.m": max(blocks.m), **(attributes or {})}

    def along_rows(i: Expr, o: Expr, q: Expr, u: Expr, v: Expr, lane: Expr) -> Expr:
        tap = ra if columns == 1 else ra * columns + v
        return te.sum(entry(at[0], u, ra, mm.dtype) * mm[tap, i, o, q, lane], axis=[ra])

    if columns == 1:
        tile = te.compute((n, co, blocks.tiles, m, 1, b), along_rows, name="inverse", attrs=attributes)
    else:
        half = None
        if rows > 1:
            half = te.compute((n, co, blocks.tiles, m, columns, b), along_rows, name="half_output")
        tile = te.compute(
            (n, co, blocks.tiles, m, columns_m, b),
            lambda i, o, q, u, v, lane: te.sum(
                (mm[rb, i, o, q, lane] if half is None else half[i, o, q, u, rb, lane]) * entry(at[1], v, rb, mm.dtype),
                axis=[rb],
            ),
            name="inverse",
            attrs=attributes,
        )

    def finish(i: Expr, o: Expr, y: Expr, z: Expr, lane: Expr) -> Expr:
        block, place = blocks.at_row(i, y, z)
        return tile[block, o, place, tirx.floormod(y, m), tirx.floormod(z, columns_m), lane] + bias[o, lane]

    return te.compute((n * blocks.images // blocks.count, co, out[0], out[1], b), finish, name="finish")


def schedule_output(sch: s_tir.Schedule, anchor: Block, machine: CpuMachine) -> None:
    """One row of tiles per task; the epilogue runs on each tile as it is stored."""
    rows, columns = anchor.spatial[3:5]
    last = inline_after(sch, anchor)
    n, o, y, z, lane = sch.get_loops(last)
    y_out, y_in = sch.split(y, [None, rows])
    z_out, z_in = sch.split(z, [None, columns])
    sch.reorder(n, o, y_out, z_out, y_in, z_in, lane)
    sch.compute_at(anchor.rv, z_out, preserve_unit_loops=True)
    sch.set_scope(anchor.rv, 0, "local")
    if has(sch, "half_output"):
        sch.compute_at("half_output", z_out, preserve_unit_loops=True)
        sch.set_scope("half_output", 0, "local")
    sch.parallel(sch.fuse(n, o, y_out))
    sch.unroll(y_in)
    sch.unroll(z_in)
    sch.vectorize(lane)
    unroll_inverse(sch, anchor.rv)


def unroll_inverse(sch: s_tir.Schedule, inverse: SBlockRV | str) -> None:
    """Straight-line code of the inverse transform of one tile."""
    for block in ("half_output", inverse) if has(sch, "half_output") else (inverse,):
        *_, u, v, tile_lane, r = sch.get_loops(block)
        sch.reorder(u, v, r, tile_lane)
        for loop in (u, v, r):
            sch.unroll(loop)
        sch.vectorize(tile_lane)
        zero_unrolled(sch, sch.decompose_reduction(block, r), 2)
