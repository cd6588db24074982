"""Exact GEMMs of quantized matrices: constant weights as bytes in panels, sums in int32.

B[K, N] becomes panels[N / width, K / unit, width, unit], whose units are adjacent as `dots.py` multiplies them.

    y[m, n] = sum over k of (a[m, k] - a_zero[m]) * (b[k, n] - b_zero[n])

With units of words the left matrix, which is small beside the weights or is read by many panels, is written as int16
before, less its zero point; the weights stay bytes in memory and become int16 in registers, once for all rows of a
tile, less their zero point where it is not known to be zero. With units of bytes both sides stay what they are, and
the left zero point times the sum of a column is subtracted at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import s_tir, te, tirx
from tvm.ir import Expr
from tvm.s_tir.schedule import LoopRV, SBlockRV

from graphopt.targets.common.kernels.blocks import RULE, Block, blocks_of, const, dims, inline_after, round_up
from graphopt.targets.cpu.kernels import gemm
from graphopt.targets.cpu.kernels.integer import dots
from graphopt.targets.cpu.kernels.tiling import padded_tile, renumber
from graphopt.targets.cpu.machine import CpuMachine

NAME = "integer_gemm"

REQUANTIZE = "requantize"
"""Name of the block that converts full tiles of sums, padding included, to the type of the result."""

MOST_VECTORS = 8

SMALLEST_SHARE = 8
"""Least tasks per core for a balanced load."""


def choose_tile(m: int, n: int, k: int, machine: CpuMachine, unit: int = dots.WORDS) -> gemm.Tile:
    """The tile with the best estimate for an M x K times K x N GEMM."""
    lanes, registers = machine.lanes("int32"), machine.level.registers
    best, best_cost = gemm.Tile(1, lanes), math.inf
    for vectors in range(1, MOST_VECTORS + 1):
        limit = (registers - vectors - 2) // vectors  # a line of the panel, a broadcast and a product beside the sums
        if k * 4 // unit % 4096 == 0:
            limit = min(limit, 6)  # rows a multiple of 4 KiB apart share one set of the first-level cache
        if limit < 1 or (vectors > 1 and (vectors - 1) * lanes >= n):
            continue
        for rows in {padded_tile(m, limit), min(m, limit)}:
            rows_of_tiles, panels = math.ceil(m / rows), math.ceil(n / (vectors * lanes))
            # A unit of K: vector instructions at four per cycle, loads at two and a little in the way.
            cycles = max((2 * rows * vectors + vectors) / 4, (rows + vectors) / 2, 4) + (rows + vectors) / 10
            tasks = round_up(rows_of_tiles * panels, machine.cores)
            cost = panels * (vectors * 4 + cycles) if rows_of_tiles == 1 else tasks * cycles
            if cost < best_cost * 0.995:
                best, best_cost = gemm.Tile(rows, vectors * lanes), cost
    return best


def units(extent: int, unit: int) -> int:
    """Units of K; the last one is zero padded."""
    return -(-extent // unit)


def left(a: te.Tensor, unit: int, zero: te.Tensor | None = None) -> te.Tensor:
    """a[L, M, K] of bytes as [L, M, K / unit, unit].

    Words are int16 less zero[L or 1, M or 1]; bytes are uint8, so that int8 becomes 128 more.
    """
    lefts, m, k = dims(a)
    dtype = "int16" if unit == dots.WORDS else "uint8"

    def element(i: Expr, row: Expr, step: Expr, part: Expr) -> Expr:
        at = step * unit + part
        value = a[i, row, at].astype("int16")
        if unit == dots.BYTES:
            value = unsigned(a(i, row, at))
        elif zero is not None:
            value = value - zero[tuple(0 if e == 1 else x for e, x in zip(dims(zero), (i, row), strict=True))].astype(
                "int16"
            )
        return value if k % unit == 0 else tirx.if_then_else(at < k, value, const(0, dtype))

    return te.compute((lefts, m, units(k, unit), unit), element, name="left")


def unsigned(value: Expr) -> Expr:
    """A byte as uint8; int8 becomes 128 more."""
    return value if str(value.ty.dtype) == "uint8" else (value.astype("int16") + const(128, "int16")).astype("uint8")


def pack(b: te.Tensor, width: int, unit: int, transposed: bool = False) -> te.Tensor:
    """Panels [R, ceil(N / width), ceil(K / unit), width, unit] of b[R, K, N] ([R, N, K] if transposed), zero padded."""
    rights, k, n = dims(b)
    if transposed:
        k, n = n, k

    def element(i: Expr, panel: Expr, step: Expr, lane: Expr, part: Expr) -> Expr | te.TensorSlice:
        row, column = step * unit + part, panel * width + lane
        value = b[i, column, row] if transposed else b[i, row, column]
        conditions = ([column < n] if n % width else []) + ([row < k] if k % unit else [])
        return tirx.if_then_else(tirx.all(*conditions), value, const(0, b.dtype)) if conditions else value

    return te.compute((rights, math.ceil(n / width), units(k, unit), width, unit), element, name="pack")


def pack_zero(zero: te.Tensor, n: int, width: int) -> te.Tensor:
    """zero[R or 1, N or 1] of bytes as int16 beside each pair of a panel, [R or 1, ceil(N / width), width, 2]."""
    rights, columns = dims(zero)

    def element(i: Expr, panel: Expr, lane: Expr, half: Expr) -> Expr:
        return zero[i, 0 if columns == 1 else tirx.min(panel * width + lane, n - 1)].astype("int16")

    return te.compute((rights, math.ceil(n / width), width, 2), element, name="pack")


def column_sums(panels: te.Tensor) -> te.Tensor:
    """Sums of the columns of panels[R, N / width, K / unit, width, unit] in int32, [R, N / width, width]."""
    rights, count, steps, width, unit = dims(panels)
    k, part = te.reduce_axis((0, steps), "k"), te.reduce_axis((0, unit), "part")
    return te.compute(
        (rights, count, width),
        lambda i, panel, lane: te.sum(panels[i, panel, k, lane, part].astype("int32"), axis=[k, part]),
        name="column_sums",
    )


def compute(
    a: te.Tensor,
    panels: te.Tensor,
    shape: Sequence[int],
    parts: tuple[int, int, int],
    rows: int,
    *,
    zero: te.Tensor | None = None,
    shift: Callable[[Expr | int, Expr], Expr] | None = None,
    columns: Any = None,
    requantize: Callable[[Expr | te.TensorSlice, Expr], Expr] | None = None,
) -> te.Tensor:
    """a[L, M, K / unit, unit] times panels[R, N / width, K / unit, width, unit], in int32, written as `shape`.

    L and R are the batch, or 1. What pads K is zero in one of them.

    Args:
        shape: the output; its first `parts[0]` axes are the batch, the next `parts[1]` M, the last `parts[2]` N.
        rows: height of the register tile.
        zero: of the panels, from `pack_zero`; None where it is zero.
        shift: the offset of a row of a batch, in int32, to subtract; it requires `columns` from `column_sums`.
        requantize: the function of a sum and its column that gives the result.
    """
    lefts, m, depth, unit = dims(a)
    rights, count, _, width, _ = dims(panels)
    batch, n = max(lefts, rights), math.prod(shape[len(shape) - parts[2] :])
    computed = round_up(m, rows)
    r, part = te.reduce_axis((0, depth), "k"), te.reduce_axis((0, unit), "part")

    def product(i: Expr, panel: Expr, y: Expr, lane: Expr) -> Expr:
        row = y if computed == m else tirx.min(y, m - 1)  # the last tile computes rows that are not stored
        right = panels[0 if rights == 1 else i, panel, r, lane, part]
        centre = None if zero is None else zero[0 if dims(zero)[0] == 1 else i, panel, lane, part]
        return te.sum(dots.product(a[0 if lefts == 1 else i, row, r, part], right, centre), axis=[r, part])

    attributes = {RULE: NAME, "graphopt.rows": rows, "graphopt.parts": list(parts)}
    sums = te.compute((batch, count, computed, width), product, name=NAME, attrs=attributes)

    def total(i: Expr | int, panel: Expr, y: Expr, lane: Expr) -> Expr | te.TensorSlice:
        result = sums[i, panel, y, lane]
        if shift is not None:
            result = result - shift(i, tirx.min(y, m - 1)) * columns[0 if rights == 1 else i, panel, lane]
        if requantize is not None:
            result = requantize(result, tirx.min(panel * width + lane, n - 1))
        return result

    if requantize is not None:
        kept = te.compute((batch, count, computed, width), total, name=REQUANTIZE)

    def finish(*index: Expr) -> Expr | te.TensorSlice:
        at, start = [], 0
        for length in parts:
            flat: Expr | int = 0
            for axis in range(start, start + length):
                flat = flat * shape[axis] + index[axis]
            at.append(flat)
            start += length
        i, y, j = at
        place = i, tirx.floordiv(j, width), y, tirx.floormod(j, width)
        return total(*place) if requantize is None else kept(*place)

    return te.compute(tuple(shape), finish, name="finish")


def epilogue(sch: s_tir.Schedule, anchor: Block) -> tuple[SBlockRV, str]:
    """Inline the consumers of `anchor` into the last block; return it and the name of the block between, or ""."""
    between = [block for block in blocks_of(sch) if block.name == REQUANTIZE]
    return inline_after(sch, between[0] if between else anchor), REQUANTIZE if between else ""


def schedule(sch: s_tir.Schedule, anchor: Block, machine: CpuMachine) -> s_tir.Schedule:
    """Parallel over (batch, panel), row tiles innermost, so that a panel stays in the second-level cache."""
    width = anchor.spatial[3]
    annotations = sch.get(anchor.rv).annotations
    rows, parts = int(annotations["graphopt.rows"]), [int(p) for p in annotations["graphopt.parts"]]
    lanes = machine.lanes("int32")
    operands = sch.get(anchor.rv).reads
    dtypes, zero = [str(region.source.dtype) for region in operands[:2]], len(operands) > 2
    last, between = epilogue(sch, anchor)
    sch = renumber(sch, last, gemm.product_axes(sch, last, parts, 1))
    last, product = blocks_of(sch)[-1].rv, sch.get_sblock(anchor.name)
    copy = tiles_out(sch, last, anchor.name, between, bool(int(sch.get(last).iter_vars[2].dom.extent) % width))
    batch, m, n = sch.get_loops(last)
    n_out, n_in = sch.split(n, [None, width])
    m_out, m_in = sch.split(m, [None, rows])
    sch.reorder(batch, n_out, m_out, m_in, n_in)
    alone = anchor.spatial[0] * anchor.spatial[1] >= SMALLEST_SHARE * machine.cores
    task = sch.fuse(batch, n_out) if alone else sch.fuse(batch, n_out, m_out)
    tile = m_out if alone else task
    place_tile(sch, tile, copy, (m_in, n_in), lanes)
    sch.compute_at(product, tile, preserve_unit_loops=True)
    sch.set_scope(product, 0, "local")
    tile_m, tile_n, k, part = sch.get_loops(product)[-4:]
    vectors, lane = sch.split(tile_n, [None, lanes])
    # Steps of K are not unrolled here: LLVM would add up their products first, which takes more registers than it has.
    sch.reorder(k, tile_m, vectors, lane, part)
    sch.parallel(task)
    for loop in (vectors, tile_m):
        sch.unroll(loop)
    start = sch.decompose_reduction(product, k)
    *_, zero_vectors, zero_rows, zero_lane = sch.get_loops(start)
    sch.unroll(zero_vectors)
    sch.unroll(zero_rows)
    sch.vectorize(zero_lane)
    dots.tensorize(sch, lane, machine, dtypes, zero)
    return sch


def tiles_out(sch: s_tir.Schedule, last: SBlockRV, name: str, between: str, ragged: bool) -> SBlockRV | None:
    """The block that copies a tile out of the registers if the last block cannot store full tiles; None if it can.

    A store under a condition on the lane would be taken apart into scalars, and indexing the sums in a rolled loop
    would push them out of the registers. So all sums are copied, or requantized, and the valid part of the copy
    is stored in a plain loop, which LLVM vectorizes.
    """
    if ragged:
        if between:
            return sch.get_sblock(between)
        reads = [str(region.source.name) for region in sch.get(last).reads]
        return sch.cache_read(last, reads.index(name), "local")
    if between:
        sch.compute_inline(sch.get_sblock(between))
    return None


def place_tile(
    sch: s_tir.Schedule, tile: LoopRV, copy: SBlockRV | None, stores: tuple[LoopRV, LoopRV], lanes: int
) -> None:
    """Store a tile, whose loops in the last block are `stores`, once per iteration of `tile`."""
    if copy is None:
        columns, store_lane = sch.split(stores[1], [None, lanes])
        sch.unroll(stores[0])
        sch.unroll(columns)
        sch.vectorize(store_lane)
        return
    sch.compute_at(copy, tile, preserve_unit_loops=True)
    sch.set_scope(copy, 0, "local")
    *_, rows, columns = sch.get_loops(copy)
    vectors, lane = sch.split(columns, [None, lanes])
    sch.unroll(rows)
    sch.unroll(vectors)
    sch.vectorize(lane)
