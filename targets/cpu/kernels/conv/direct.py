"""Direct convolution on the channel-blocked layout: one register tile of output columns x channel vectors.

    y[n, co, oh, ow, :] = bias[co, :]
                          + sum over ci, kh, kw, i of x[n, ci, oh*s+kh, ow*s+kw, i] * w[co, ci, kh, kw, i, :]

The innermost loops hold `columns x vectors` accumulators in registers; each step loads `vectors` weight vectors and
broadcasts `columns` scalars, so a tile of 14 x 2 issues 28 fused multiply-adds for 16 loads.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from tvm import s_tir, te, tirx
from tvm.ir import Expr
from tvm.s_tir.schedule import SBlockRV

from graphopt.program.program import ITEM_BYTES
from graphopt.targets.common.kernels.blocks import RULE, Block, blocks_of, dims, inline_after, round_up
from graphopt.targets.cpu.kernels import partials, prefetch
from graphopt.targets.cpu.kernels.tiling import padded_tile, renumber
from graphopt.targets.cpu.machine import CpuMachine

NAME = "conv_direct"


@dataclass(frozen=True, slots=True)
class Tile:
    """`columns x vectors` accumulators; written "14x2", or "14x2i" where a task goes over all channel tiles.

    A task is a tile of output channels on one row (on a 1x1 convolution, one tile of positions), so its weights stay in
    the cache; with `inner` it is all output channels there, so its input does.
    """

    columns: int
    vectors: int
    inner: bool = False

    def __str__(self) -> str:
        """The spelling that `parse` reads."""
        return f"{self.columns}x{self.vectors}{'i' if self.inner else ''}"

    @staticmethod
    def parse(text: str) -> Tile:
        """The inverse of `str`.

        Raises:
            ValueError: `text` is no such spelling.
        """
        match = re.fullmatch(r"([1-9][0-9]{0,2})x([1-9])(i?)", text)
        if match is None:
            raise ValueError(f"{text!r} is no tile of a convolution (such as 14x2 or 14x2i)")
        return Tile(int(match[1]), int(match[2]), bool(match[3]))


SPACE = 8
"""Tiles that are worth measuring, at most."""


def tiles(
    row_width: int, vectors: int, machine: CpuMachine, weight_bytes: int, flat: bool, batch: int = 1
) -> tuple[Tile, ...]:
    """The tiles for rows of `row_width` outputs and `vectors` channel blocks per group, best estimate first.

    `flat` says that the convolution is 1x1 with stride 1, whose one row is the full map. There tasks keep their input
    if the weights, which every task then reads in full, stay in the second-level cache.
    """
    inner = flat and weight_bytes <= machine.l2_bytes * 3 // 4
    ranked = []
    for cycles, columns, count in estimates(row_width, vectors, machine):
        tasks = batch * math.ceil(row_width / columns)
        idle = math.ceil(tasks / machine.cores) * machine.cores / tasks if inner else 1.0
        ranked.append((cycles * idle, -columns, count))
    shapes = [(-columns, count) for _, columns, count in sorted(ranked)[: SPACE // 2]]
    return tuple(Tile(*shape, way) for way in (inner, not inner) for shape in shapes)


def estimates(row_width: int, vectors: int, machine: CpuMachine) -> Iterator[tuple[float, int, int]]:
    """(cycles, columns, vectors) for each number of vectors: as many columns as fit beside the weights and a broadcast.

    Cycles of one reduction step: two multiply-adds and two loads each cycle, four cycles of latency.
    """
    registers = machine.level.registers
    for count in (1, 2, 3, 4):
        if vectors % count:
            continue
        columns = padded_tile(row_width, (registers - count - 1) // count)
        steps = math.ceil(row_width / columns) * (vectors // count)
        yield steps * max(columns * count / 2, (columns + count) / 2, 4), columns, count


def tile_shape(out_width: int, vectors: int, machine: CpuMachine) -> tuple[int, int]:
    """(columns, vectors) of the register tile with the fewest cycles.

    Prefers two or more weight vectors per broadcast, since the load ports bound the loop before the multipliers do.
    """
    best, best_cost = (1, 1), math.inf
    for cycles, columns, count in estimates(out_width, vectors, machine):
        if cycles < best_cost * 0.97:
            best, best_cost = (columns, count), cycles
    return best


def compute(
    x: te.Tensor,
    w: te.Tensor,
    bias: te.Tensor,
    strides: tuple[int, int],
    dilations: tuple[int, int],
    machine: CpuMachine,
    tile: Tile | None = None,
) -> te.Tensor:
    """The convolution of an input that is already padded.

    A 1x1 convolution with stride 1 runs over all positions of the map as one row, where tiles fit better.

    Args:
        x: [N, CI, H, W, bi].
        w: [CO, CI / groups, KH, KW, bi, b].
        bias: [CO, b].
        tile: None for the one with the best estimate; its vectors divide CO / groups.
    """
    n, ci, h, width, bi = dims(x)
    co, ci_group, kh, kw, _, b = dims(w)
    out_h = (h - (kh - 1) * dilations[0] - 1) // strides[0] + 1
    out_w = (width - (kw - 1) * dilations[1] - 1) // strides[1] + 1
    co_group = co // (ci // ci_group)
    flat = (kh, kw, *strides) == (1, 1, 1, 1)
    rows, row_width = (1, out_h * out_w) if flat else (out_h, out_w)
    weight_bytes = math.prod(dims(w)) * ITEM_BYTES[str(w.dtype)]
    tile = tile or tiles(row_width, co_group, machine, weight_bytes, flat, n)[0]
    computed = round_up(row_width, tile.columns)
    rc = te.reduce_axis((0, ci_group), "ci")
    rh = te.reduce_axis((0, kh), "kh")
    rw = te.reduce_axis((0, kw), "kw")
    ri = te.reduce_axis((0, bi), "i")

    def product(i: Expr, o: Expr, y: Expr, z: Expr, lane: Expr) -> Expr:
        row, column = y * strides[0] + rh * dilations[0], z * strides[1] + rw * dilations[1]
        if computed != row_width:  # the last tile computes columns that are not stored
            column = tirx.min(column, (h * width if flat else width) - 1)
        if flat:
            row, column = tirx.floordiv(column, width), tirx.floormod(column, width)
        channel = rc if ci_group == ci else tirx.floordiv(o, co_group) * ci_group + rc
        return te.sum(x[i, channel, row, column, ri] * w[o, rc, rh, rw, ri, lane], axis=[rc, rh, rw, ri])

    attributes = {RULE: NAME, "graphopt.tile": str(tile), "graphopt.flat": int(flat)}
    sums = te.compute((n, co, rows, computed, b), product, name="conv", attrs=attributes)

    def finish(i: Expr, o: Expr, y: Expr, z: Expr, lane: Expr) -> Expr:
        place = (0, y * out_w + z) if flat else (y, z)
        return sums[(i, o, *place, lane)] + bias[o, lane]

    return te.compute((n, co, out_h, out_w, b), finish, name="bias")


def schedule(sch: s_tir.Schedule, anchor: Block, machine: CpuMachine) -> s_tir.Schedule | tirx.PrimFunc:
    """Parallel over (batch, channel tile, row); the epilogue runs on the accumulators' tile before it is stored."""
    _, _, _, bi = anchor.reduce
    annotations = sch.get(anchor.rv).annotations
    tile = Tile.parse(str(annotations["graphopt.tile"]))
    last = inline_after(sch, anchor)
    flat = int(annotations["graphopt.flat"])
    if flat:
        map_width = int(sch.get(last).iter_vars[3].dom.extent)
        sch = renumber(sch, last, lambda n, co, oh, ow, lane: [n, co, oh * map_width + ow, lane])
        last = blocks_of(sch)[-1].rv
        n, co, ow, lane = sch.get_loops(last)
    else:
        n, co, oh, ow, lane = sch.get_loops(last)
    conv = sch.get_sblock(anchor.name)
    co_out, co_in = sch.split(co, [None, tile.vectors])
    ow_out, ow_in = sch.split(ow, [None, tile.columns])
    places = [ow_out] if flat else [oh]
    along = [] if flat else [ow_out]
    sch.reorder(n, *((*places, co_out) if tile.inner else (co_out, *places)), *along, co_in, ow_in, lane)
    task = sch.fuse(n, *places) if tile.inner else sch.fuse(n, co_out, *places)
    at = (along or [co_out if tile.inner else task])[0]
    sch.compute_at(conv, at, preserve_unit_loops=True)
    sch.set_scope(conv, 0, "local")
    tile_co, _, tile_ow, tile_lane, ci, kh, kw, i = sch.get_loops(conv)[-8:]
    unrolled = 4 if bi % 4 == 0 else bi if bi <= 4 else 1
    i_out, i_in = sch.split(i, [None, unrolled])
    # Planes innermost where blocks have one channel: neighbouring taps in one unrolled body read the same columns, and
    # LLVM would keep them all in registers. In the tile a broadcast serves every vector, then dies.
    steps = (ci, kh, kw, i_out, i_in) if bi > 1 else (kh, kw, ci, i_out, i_in)
    sch.reorder(*steps, tile_ow, tile_co, tile_lane)
    sch.parallel(task)
    for loop in (i_in, tile_co, tile_ow, co_in, ow_in):
        sch.unroll(loop)
    sch.vectorize(tile_lane)
    sch.vectorize(lane)
    if bi > 1:
        partials.mark(sch, ci, bi * anchor.reduce[1] * anchor.reduce[2])
    start = sch.decompose_reduction(conv, steps[0])
    *_, zero_co, _, zero_ow, zero_lane = sch.get_loops(start)
    sch.unroll(zero_co)
    sch.unroll(zero_ow)
    sch.vectorize(zero_lane)
    if tile.inner:
        return sch
    prefetch.mark(sch, i_out)
    return prefetch.insert(sch, _weights(sch, anchor, conv, tile, bool(flat)))


def _weights(sch: s_tir.Schedule, anchor: Block, conv: SBlockRV, tile: Tile, flat: bool) -> prefetch.Stream:
    """The weights of one channel tile after another, each read for every row (1x1: every tile of positions)."""
    _, channels, rows, computed, lanes = anchor.spatial
    across, panels = computed // tile.columns, channels // tile.vectors
    places = across if flat else rows

    def place(task: Expr, *along: Expr) -> tuple[Expr, Expr]:
        turn = tirx.floormod(task, places)
        for column in along:
            turn = turn * across + column
        return tirx.floormod(tirx.floordiv(task, places), panels), turn

    panel = tile.vectors * math.prod(anchor.reduce) * lanes
    return prefetch.Stream(prefetch.weights_of(sch, conv), panel, rows * across, 1 if flat else 2, place)
