"""Winograd convolution in one pass over blocks of tiles: V and M, which separate kernels keep in memory, stay in cache.

    for each block of tile rows, in parallel:
        V = B^T d B of its tiles, all input channels
        for each group of output channels:
            M = V U of the group
            y = A^T M A + bias, and the epilogue

V and M of a block are scratch of the task. The weights are read once per block instead of once, so this pays on large
maps, where V and M would otherwise go through memory, and not on small ones.
"""

from __future__ import annotations

from tvm import s_tir, te

from graphopt.targets.common.kernels.blocks import RULE, Block, extent_of, inline_after
from graphopt.targets.cpu.kernels.conv.direct import estimates
from graphopt.targets.cpu.kernels.conv.winograd import (
    TILE,
    Blocks,
    Pair,
    Tile,
    before_transform,
    has,
    product,
    schedule_tile_product,
    transform_input,
    transform_output,
    unroll_inverse,
    unroll_transform,
)
from graphopt.targets.cpu.machine import CpuMachine

NAME = "winograd_fused"


def compute(
    x: te.Tensor,
    u: te.Tensor,
    bias: te.Tensor,
    m: tuple[int, int],
    pads: tuple[int, int, int, int],
    out: tuple[int, int],
    at: Pair,
    bt: Pair,
    machine: CpuMachine,
    tile: Tile,
) -> te.Tensor:
    """y[N, CO, OH, OW, b] of x[N, CI, H, W, b], u[taps, CO, CI, b, b], bias[CO, b]; A^T and B^T of both axes."""
    blocks = Blocks.of(out, m, tile.rows, tile.columns)  # no tile of the GEMM reaches into the next task
    v = transform_input(x, blocks, pads, bt, "")
    attributes = {RULE: NAME, TILE: str(tile), "graphopt.rows": blocks.rows}
    return transform_output(product(v, u, machine, tile, ""), bias, blocks, out, at, attributes)


def schedule(sch: s_tir.Schedule, anchor: Block, machine: CpuMachine) -> None:
    """One task per block of tile rows; in it, one group of output channels after the other."""
    annotations = sch.get(anchor.rv).annotations
    (m, columns_m), rows = anchor.spatial[3:5], int(annotations["graphopt.rows"])
    tile = Tile.parse(str(annotations[TILE]))
    last = inline_after(sch, anchor)
    n, o, y, z, lane = sch.get_loops(last)
    task_y, y_out, y_in = sch.split(y, [None, rows, m])
    z_out, z_in = sch.split(z, [None, columns_m])
    o_out, o_in = sch.split(o, [None, tile.vectors])
    sch.reorder(n, task_y, o_out, o_in, y_out, z_out, y_in, z_in, lane)
    task = sch.fuse(n, task_y)
    inverse = sch.get(anchor.rv).name_hint
    for block in (inverse, "half_output") if has(sch, "half_output") else (inverse,):
        sch.compute_at(block, z_out, preserve_unit_loops=True)
        sch.set_scope(block, 0, "local")
    sch.compute_at("crop", o_out, preserve_unit_loops=True)
    taps, _, co, p, crop_lane = sch.get_loops("crop")[-5:]
    p_out, p_in = sch.split(p, [None, tile.columns])
    sch.reorder(taps, p_out, co, p_in, crop_lane)
    sch.compute_at("product", p_out, preserve_unit_loops=True)
    sch.set_scope("product", 0, "local")
    sch.compute_at("transform", task, preserve_unit_loops=True)
    t, _, c, q, transform_lane, rb = sch.get_loops("transform")[-6:]
    sch.reorder(c, q, t, rb, transform_lane)
    for block in before_transform(sch):
        sch.compute_at(block, q, preserve_unit_loops=True)
        sch.set_scope(block, 0, "local")
    sch.parallel(task)
    for loop in (y_in, z_in, co, p_in):
        sch.unroll(loop)
    sch.vectorize(lane)
    sch.vectorize(crop_lane)
    schedule_tile_product(sch, sch.get_sblock("product"))
    unroll_transform(sch, sch.get_sblock("transform"), extent_of(sch, rb))
    unroll_inverse(sch, inverse)


SPACE = 8
"""Tiles that are worth measuring, at most."""


def tiles(
    out: tuple[int, int],
    m: tuple[int, int],
    taps: int,
    ci: int,
    co: int,
    batch: int,
    machine: CpuMachine,
    itemsize: int = 4,
) -> tuple[Tile, ...]:
    """The tiles of a Winograd convolution with `ci` and `co` blocks of channels, the best estimate first.

    In one pass where V and M of the full map would not stay in the second-level caches and the weights, which every
    task reads, nearly do; else in three, whose weights are read once.
    """
    rows, columns = -(-out[0] // m[0]), -(-out[1] // m[1])
    lanes = machine.level.vector_bytes // itemsize
    block_bytes = taps * lanes * itemsize
    scratch, weights = block_bytes * batch * rows * columns * (ci + co), block_bytes * lanes * ci * co
    separate = [Tile(*shape) for shape in _shapes(batch * rows * columns, co, machine)][: SPACE // 2 - 1]
    fused = []
    for wanted in (1, 2, 4, 7):
        shapes = _shapes(min(wanted, rows) * columns, co, machine)
        enough = batch * -(-rows // wanted) >= machine.cores
        if wanted <= rows and enough and wanted * columns * ci * block_bytes <= 2 * machine.l2_bytes:
            fused += [Tile(*shape, wanted) for shape in shapes[:2]]
    one_pass = scratch > machine.cores * machine.l2_bytes and weights <= 3 * machine.l2_bytes
    groups = (fused, separate) if one_pass else (separate, fused)
    return tuple((groups[0] + groups[1])[:SPACE])


def every_tile(out: tuple[int, int], m: tuple[int, int], co: int, machine: CpuMachine) -> tuple[Tile, ...]:
    """All tiles that fit the registers."""
    rows = -(-out[0] // m[0])
    registers = machine.level.registers
    shapes = [
        (columns, count)
        for count in (1, 2, 3, 4)
        if co % count == 0
        for columns in range(1, (registers - count - 1) // count + 1)
    ]
    return tuple(Tile(*shape, height) for height in (0, 1, 2, 3, 4, 7) if height <= rows for shape in shapes)


def _shapes(places: int, vectors: int, machine: CpuMachine) -> list[tuple[int, int]]:
    """(columns, vectors) of the GEMM's register tile over `places` tiles, the fewest cycles first."""
    ranked = sorted((cycles, -columns, count) for cycles, columns, count in estimates(places, vectors, machine))
    return [(-columns, count) for _, columns, count in ranked]
