"""Exact products of quantized matrices: rows in int16, constant weights as bytes in panels, sums in int32.

B[K, N] becomes panels[N / width, K / 2, width, 2], whose pairs of rows stand side by side, as `dots.py` multiplies
them; the weights stay bytes in memory and become int16 in registers, once for all rows of a tile.

    y[m, n] = sum over k of (a[m, k] - a_zero[m]) * (b[k, n] - b_zero[n])

The left matrix, which is small beside the weights or is read by many panels, is written as int16 before, less its zero
point; the right zero point is subtracted in registers, or not at all where it is known to be zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tvm import s_tir, te, tirx

from graphopt.targets.kernels import dots, gemm, prefetch
from graphopt.targets.kernels.common import RULE, Block, blocks_of, const, dims, inline_after, renumber, round_up
from graphopt.targets.machine import CpuMachine

NAME = "integer_gemm"

MOST_VECTORS = 8


def choose_tile(m: int, n: int, k: int, machine: CpuMachine) -> gemm.Tile:
    """The tile with the best estimate for an M x K times K x N product."""
    lanes, registers = machine.lanes("int32"), machine.level.registers
    best, best_cost = gemm.Tile(1, lanes), math.inf
    for vectors in range(1, MOST_VECTORS + 1):
        limit = (registers - vectors - 2) // vectors  # a line of the panel, a broadcast and a product beside the sums
        if limit < 1 or (vectors > 1 and (vectors - 1) * lanes >= n):
            continue
        for rows in {gemm.padded_tile(m, limit), min(m, limit)}:
            rows_of_tiles, panels = math.ceil(m / rows), math.ceil(n / (vectors * lanes))
            # A pair of K: products at two per cycle, all instructions (widening too) at four, loads at two.
            cycles = max(rows * vectors / 2, (2 * rows * vectors + 2 * vectors) / 4, (rows + vectors) / 2, 4)
            tasks = round_up(rows_of_tiles * panels, machine.cores)
            cost = panels * (vectors * 4 + cycles) if rows_of_tiles == 1 else tasks * (cycles + vectors / 4)
            if cost < best_cost * 0.995:
                best, best_cost = gemm.Tile(rows, vectors * lanes), cost
    return best


def pairs(extent: int) -> int:
    """Pairs of K; the last one is zero padded."""
    return (extent + 1) // 2


def centre(a: Any, zero: Any = None) -> Any:
    """a[L, M, K] of bytes less zero[L or 1, M or 1] as int16 in pairs, [L, M, ceil(K / 2), 2]."""
    lefts, m, k = dims(a)

    def element(i: Any, row: Any, pair: Any, half: Any) -> Any:
        at = pair * 2 + half
        value = a[i, row, at].astype("int16")
        if zero is not None:
            value = value - zero[tuple(0 if e == 1 else x for e, x in zip(dims(zero), (i, row), strict=True))].astype(
                "int16"
            )
        return value if k % 2 == 0 else tirx.if_then_else(at < k, value, const(0, "int16"))

    return te.compute((lefts, m, pairs(k), 2), element, name="centre")


def pack(b: Any, width: int, transposed: bool = False) -> Any:
    """Panels [R, ceil(N / width), ceil(K / 2), width, 2] of b[R, K, N] ([R, N, K] if transposed), zero padded."""
    rights, k, n = dims(b)
    if transposed:
        k, n = n, k

    def element(i: Any, panel: Any, pair: Any, lane: Any, half: Any) -> Any:
        row, column = pair * 2 + half, panel * width + lane
        value = b[i, column, row] if transposed else b[i, row, column]
        conditions = ([column < n] if n % width else []) + ([row < k] if k % 2 else [])
        return tirx.if_then_else(tirx.all(*conditions), value, const(0, b.dtype)) if conditions else value

    return te.compute((rights, math.ceil(n / width), pairs(k), width, 2), element, name="pack")


def pack_zero(zero: Any, n: int, width: int) -> Any:
    """zero[R or 1, N or 1] of bytes as int16 beside each pair of a panel, [R or 1, ceil(N / width), width, 2]."""
    rights, columns = dims(zero)

    def element(i: Any, panel: Any, lane: Any, half: Any) -> Any:
        return zero[i, 0 if columns == 1 else tirx.min(panel * width + lane, n - 1)].astype("int16")

    return te.compute((rights, math.ceil(n / width), width, 2), element, name="pack")


def compute(
    a: Any, panels: Any, shape: Sequence[int], parts: tuple[int, int, int], rows: int, zero: Any = None
) -> Any:
    """a[L, M, K / 2, 2] of int16 times panels[R, N / width, K / 2, width, 2], in int32, written as `shape`.

    L and R are the batch, or 1. What pads K is zero on the left.

    Args:
        shape: the output; its first `parts[0]` axes are the batch, the next `parts[1]` M, the last `parts[2]` N.
        rows: height of the register tile.
        zero: of the panels, from `pack_zero`; None where it is zero.
    """
    lefts, m, depth, _ = dims(a)
    rights, count, _, width, _ = dims(panels)
    batch = max(lefts, rights)
    computed = round_up(m, rows)
    r, half = te.reduce_axis((0, depth), "k"), te.reduce_axis((0, 2), "half")

    def product(i: Any, panel: Any, y: Any, lane: Any) -> Any:
        row = y if computed == m else tirx.min(y, m - 1)  # the last tile computes rows that nobody keeps
        right = panels[0 if rights == 1 else i, panel, r, lane, half]
        centre = None if zero is None else zero[0 if dims(zero)[0] == 1 else i, panel, lane, half]
        return te.sum(dots.product(a[0 if lefts == 1 else i, row, r, half], right, centre), axis=[r, half])

    attributes = {RULE: NAME, "graphopt.rows": rows, "graphopt.parts": list(parts)}
    sums = te.compute((batch, count, computed, width), product, name=NAME, attrs=attributes)

    def finish(*index: Any) -> Any:
        at, start = [], 0
        for length in parts:
            flat: Any = 0
            for axis in range(start, start + length):
                flat = flat * shape[axis] + index[axis]
            at.append(flat)
            start += length
        i, y, j = at
        return sums[i, tirx.floordiv(j, width), y, tirx.floormod(j, width)]

    return te.compute(tuple(shape), finish, name="finish")


def schedule(sch: s_tir.Schedule, anchor: Block, machine: CpuMachine) -> Any:
    """Parallel over (batch, panel, row tile), rows innermost, so that a panel stays in the second-level cache."""
    width = anchor.spatial[3]
    annotations = sch.get(anchor.rv).annotations
    rows, parts = int(annotations["graphopt.rows"]), [int(p) for p in annotations["graphopt.parts"]]
    lanes = machine.lanes("int32")
    operands = sch.get(anchor.rv).reads
    dtype, zero = str(operands[1].source.dtype), len(operands) > 2
    last = inline_after(sch, anchor)
    sch = renumber(sch, last, gemm.product_axes(sch, last, parts, 1))
    last, product = blocks_of(sch)[-1].rv, sch.get_sblock(anchor.name)
    ragged = bool(int(sch.get(last).iter_vars[2].dom.extent) % width)
    if ragged:  # as in `gemm.py`
        reads = [str(region.source.name) for region in sch.get(last).reads]
        copy = sch.cache_read(last, reads.index(anchor.name), "local")
    batch, m, n = sch.get_loops(last)
    n_out, n_in = sch.split(n, [None, width])
    m_out, m_in = sch.split(m, [None, rows])
    sch.reorder(batch, n_out, m_out, m_in, n_in)
    task = sch.fuse(batch, n_out, m_out)
    if ragged:
        gemm.copy_out(sch, copy, task, lanes)
    sch.compute_at(product, task, preserve_unit_loops=True)
    sch.set_scope(product, 0, "local")
    tile_m, tile_n, k, half = sch.get_loops(product)[-4:]
    vectors, lane = sch.split(tile_n, [None, lanes])
    # Steps of K are not unrolled here: LLVM would add up their products first, which takes more registers than it has.
    sch.reorder(k, tile_m, vectors, lane, half)
    sch.parallel(task)
    for loop in (vectors, tile_m):
        sch.unroll(loop)
    if not ragged:
        columns, store_lane = sch.split(n_in, [None, lanes])
        sch.unroll(m_in)
        sch.unroll(columns)
        sch.vectorize(store_lane)
    start = sch.decompose_reduction(product, k)
    *_, zero_vectors, zero_rows, zero_lane = sch.get_loops(start)
    sch.unroll(zero_vectors)
    sch.unroll(zero_rows)
    sch.vectorize(zero_lane)
    dots.tensorize(sch, lane, machine, dtype, zero)
    return sch
