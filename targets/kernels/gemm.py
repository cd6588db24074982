"""Matrix products: constant weights packed into panels, and batched products of two activations.

Packed: B[K, N] becomes panels[N / width, K, width], so that each step of K reads one contiguous line of vectors.

    y[m, n] = sum over k of a[m, k] * panels[n / width, k, n % width]

With few rows the product is bound by reading the weights: the panel is as wide as the registers allow, so that enough
independent sums hide the latency. With many rows the register tile is rows x vectors, as in a convolution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import s_tir, te, tirx

from graphopt.targets.kernels.common import RULE, Block, const, dims, dtype_of, flatten, inline_after, padded_tile, round_up
from graphopt.targets.machine import CpuMachine

NAME = "gemm"


@dataclass(frozen=True, slots=True)
class Tile:
    """`rows` of the left matrix times `width` columns (a multiple of the vector lanes) held in registers."""

    rows: int
    width: int


def choose_tile(m: int, n: int, machine: CpuMachine, dtype: str) -> Tile:
    """The register tile with the fewest estimated cycles per step of K over the whole (padded) output."""
    lanes, registers = machine.lanes(dtype), machine.level.registers
    best, best_cost = Tile(1, lanes), math.inf
    for vectors in range(1, 9):
        limit = (registers - vectors - 1) // vectors
        if limit < 1 or (vectors > 1 and (vectors - 1) * lanes >= n):
            continue
        for rows in sorted({padded_tile(m, limit), min(m, limit)}, reverse=True):
            tiles = math.ceil(n / (vectors * lanes))
            cycles = math.ceil(m / rows) * max(rows * vectors / 2, (rows + vectors) / 2, 4)
            # With one row of tiles each weight is used once: the bytes read, padding included, decide.
            cost = tiles * (vectors * 8 + cycles) if m <= rows else tiles * cycles
            if cost < best_cost * 0.995:
                best, best_cost = Tile(rows, vectors * lanes), cost
    return best


def pack(b: Any, width: int, transposed: bool) -> Any:
    """Panels [batch, ceil(N / width), K, width] of b[batch, K, N] (or [batch, N, K]); the last one zero padded."""
    batch, k, n = dims(b)
    if transposed:
        k, n = n, k

    def element(i: Any, panel: Any, row: Any, lane: Any) -> Any:
        column = panel * width + lane
        value = b[i, column, row] if transposed else b[i, row, column]
        return value if n % width == 0 else tirx.if_then_else(column < n, value, const(0, b.dtype))

    return te.compute((batch, math.ceil(n / width), k, width), element, name="pack")


def pack_patches(
    x: Any,
    groups: int,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    out: Sequence[int],
    width: int,
) -> Any:
    """im2col straight into panels: x[N, C, *spatial] becomes [N * groups, ceil(P / width), C / groups * K, width].

    P counts output positions, K kernel taps; taps outside the image are zero. Any number of spatial dimensions.
    """
    n, channels, *image = dims(x)
    per_group, taps, positions = channels // groups, math.prod(kernel), math.prod(out)

    def element(i: Any, panel: Any, row: Any, lane: Any) -> Any:
        position, tap = panel * width + lane, tirx.floormod(row, taps)
        conditions = [position < positions] if positions % width else []
        index: list[Any] = []
        for axis in reversed(range(len(kernel))):
            at = tirx.floormod(position, out[axis]) if axis else position
            step = tirx.floormod(tap, kernel[axis]) if axis else tap
            position, tap = tirx.floordiv(position, out[axis]), tirx.floordiv(tap, kernel[axis])
            place = at * strides[axis] + step * dilations[axis] - pads[axis]
            if pads[axis] or (out[axis] - 1) * strides[axis] + (kernel[axis] - 1) * dilations[axis] >= image[axis]:
                conditions += [place >= 0, place < image[axis]]
            index.insert(0, place)
        channel = tirx.floormod(i, groups) * per_group + tirx.floordiv(row, taps)
        value = x[(tirx.floordiv(i, groups), channel, *index)]
        return tirx.if_then_else(tirx.all(*conditions), value, const(0, x.dtype)) if conditions else value

    return te.compute((n * groups, math.ceil(positions / width), per_group * taps, width), element, name="patches")


def compute(
    a: Any, panels: Any, shape: Sequence[int], parts: tuple[int, int, int], rows: int, groups: int = 1, bias: Any = None
) -> Any:
    """a[batch or groups or 1, M, K] times panels[batch or 1, ceil(N / width), K, width], written as `shape`.

    Args:
        shape: the output; its first `parts[0]` axes are the batch, the next `parts[1]` M, the last `parts[2]` N.
        rows: height of the register tile.
        groups: where more than 1, the M axis of `shape` holds `groups` times M, group-major, and the batch counts them.
        bias: [groups * M], added along M.
    """
    lefts, m, k = dims(a)
    rights, count, _, width = dims(panels)
    batch = max(lefts, rights)
    computed = round_up(m, rows)
    r = te.reduce_axis((0, k), "k")

    def product(i: Any, panel: Any, y: Any, lane: Any) -> Any:
        row = y if computed == m else tirx.min(y, m - 1)  # the last tile computes rows that nobody keeps
        left = 0 if lefts == 1 else i if lefts == batch else tirx.floormod(i, lefts)
        return te.sum(a[left, row, r] * panels[0 if rights == 1 else i, panel, r, lane], axis=[r])

    sums = te.compute(
        (batch, count, computed, width),
        product,
        name="gemm",
        attrs={RULE: NAME, "graphopt.rows": rows, "graphopt.parts": list(parts), "graphopt.groups": groups},
    )

    def finish(*index: Any) -> Any:
        at, start = [], 0
        for length in parts:
            flat: Any = 0
            for axis in range(start, start + length):
                flat = flat * shape[axis] + index[axis]
            at.append(flat)
            start += length
        i, y, j = at
        channel = y
        if groups > 1:
            i, y = i * groups + tirx.floordiv(y, m), tirx.floormod(y, m)
        value = sums[i, tirx.floordiv(j, width), y, tirx.floormod(j, width)]
        return value if bias is None else value + bias[channel]

    return te.compute(tuple(shape), finish, name="finish")


def schedule(sch: s_tir.Schedule, anchor: Block, machine: CpuMachine) -> None:
    """Parallel over (batch, panel, row tile), rows innermost, so that a panel stays in the second-level cache."""
    gemm = anchor.rv
    width = anchor.spatial[3]
    annotations = sch.get(gemm).annotations
    rows, groups = int(annotations["graphopt.rows"]), int(annotations["graphopt.groups"])
    parts = [int(p) for p in annotations["graphopt.parts"]]
    lanes = machine.lanes(dtype_of(sch, gemm))
    last = inline_after(sch, anchor)
    rank = sum(parts)
    flatten(sch, last, rank - parts[2], rank)
    flatten(sch, last, parts[0], parts[0] + parts[1])
    flatten(sch, last, 0, parts[0])
    loops = sch.get_loops(last)
    batch, m, n = (None, *loops) if not parts[0] else loops if parts[1] else (loops[0], None, loops[1])
    if groups > 1:
        outer, m = sch.split(m, [groups, None])
        batch = sch.fuse(batch, outer)
    n_out, n_in = sch.split(n, [None, width])
    if m is None:
        m = sch.add_unit_loop(n_out)
    m_out, m_in = sch.split(m, [None, rows])
    sch.reorder(n_out, m_out, m_in, n_in)
    task = sch.fuse(*([batch] if batch is not None else []), n_out, m_out)
    sch.compute_at(gemm, task, preserve_unit_loops=True)
    sch.set_scope(gemm, 0, "local")
    tile_m, tile_n, k = sch.get_loops(gemm)[-3:]
    vectors, lane = sch.split(tile_n, [None, lanes])
    k_out, k_in = sch.split(k, [None, 4 if anchor.reduce[0] % 4 == 0 else 1])
    sch.reorder(k_out, k_in, vectors, tile_m, lane)
    sch.parallel(task)
    for loop in (k_in, vectors, tile_m, m_in):
        sch.unroll(loop)
    sch.vectorize(lane)
    columns, store_lane = sch.split(n_in, [None, lanes])
    sch.unroll(columns)
    sch.vectorize(store_lane)
    start = sch.decompose_reduction(gemm, k_out)
    *_, zero_vectors, zero_rows, zero_lane = sch.get_loops(start)
    sch.unroll(zero_vectors)
    sch.unroll(zero_rows)
    sch.vectorize(zero_lane)
