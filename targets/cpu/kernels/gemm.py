"""GEMMs: constant weights packed into panels, and batched GEMMs of two activations.

Packed: B[K, N] becomes panels[N / width, K, width], so that each step of K reads one contiguous line of vectors.

    y[m, n] = sum over k of a[m, k] * panels[n / width, k, n % width]

With few rows the GEMM is bound by reading the weights: the panel is as wide as the registers allow, so that enough
independent sums hide the latency. With many rows the register tile is rows x vectors, as in a convolution.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tvm import s_tir, te, tirx
from tvm.ir import Expr
from tvm.s_tir.schedule import LoopRV, SBlockRV

from graphopt.program.program import ITEM_BYTES
from graphopt.targets.common.kernels.blocks import RULE, Block, blocks_of, const, dims, dtype_of, inline_after, round_up
from graphopt.targets.cpu.kernels import partials, prefetch
from graphopt.targets.cpu.kernels.tiling import padded_tile, renumber
from graphopt.targets.cpu.machine import CpuMachine

NAME = "gemm"


@dataclass(frozen=True, slots=True)
class Tile:
    """`rows` of the left matrix times `width` columns (full vectors) held in registers; written "12x32"."""

    rows: int
    width: int

    def __str__(self) -> str:
        """The spelling that `parse` reads."""
        return f"{self.rows}x{self.width}"

    @staticmethod
    def parse(text: str) -> Tile:
        """The inverse of `str`.

        Raises:
            ValueError: `text` is no such spelling.
        """
        match = re.fullmatch(r"([1-9][0-9]{0,2})x([1-9][0-9]{0,3})", text)
        if match is None:
            raise ValueError(f"{text!r} is no tile of a matrix product (such as 12x32)")
        return Tile(int(match[1]), int(match[2]))


SPACE = 8
"""Tiles that are worth measuring, at most."""

MOST_VECTORS = 8


def _most_rows(vectors: int, machine: CpuMachine) -> int:
    """Rows whose sums fit into the registers beside a line of the panel and a broadcast."""
    return (machine.level.registers - vectors - 1) // vectors


def fits(tile: Tile, machine: CpuMachine, dtype: str) -> bool:
    """Whether the sums of `tile` are full vectors and stay in the registers."""
    vectors, rest = divmod(tile.width, machine.lanes(dtype))
    return rest == 0 and 1 <= vectors <= MOST_VECTORS and tile.rows <= _most_rows(vectors, machine)


def estimates(m: int, n: int, k: int, machine: CpuMachine, dtype: str) -> Iterator[tuple[float, Tile]]:
    """Estimated cycles per step of K over the full (padded) output, for each width with one or two heights."""
    lanes = machine.lanes(dtype)
    for vectors in range(1, MOST_VECTORS + 1):
        limit = _most_rows(vectors, machine)
        if k * ITEM_BYTES[dtype] % 4096 == 0:
            limit = min(limit, 8)  # rows a multiple of 4 KiB apart share one set of the first-level cache: 8 to 12 ways
        if limit < 1 or (vectors > 1 and (vectors - 1) * lanes >= n):
            continue
        for rows in sorted({padded_tile(m, limit), min(m, limit)}, reverse=True):
            rows_of_tiles, panels = math.ceil(m / rows), math.ceil(n / (vectors * lanes))
            # Multiply-adds, loads and latency bound a step; panels stream from the second-level cache at about four
            # cycles a vector, of which most hides behind the arithmetic; broadcasts from the first.
            cycles = max(rows * vectors / 2, (rows + vectors) / 2, 4) + vectors / 4 + rows / 10
            tasks = round_up(rows_of_tiles * panels, machine.cores)
            # With one row of tiles each weight is read once, from memory: the bytes, padding included, decide.
            yield panels * (vectors * 8 + cycles) if rows_of_tiles == 1 else tasks * cycles, Tile(rows, vectors * lanes)


def choose_tile(m: int, n: int, k: int, machine: CpuMachine, dtype: str, text: str | None = None) -> Tile:
    """The tile spelled by `text` where it is one that fits the registers, else the one with the best estimate."""
    if text:
        try:
            tile = Tile.parse(text)
        except ValueError:
            pass
        else:
            if fits(tile, machine, dtype):
                return Tile(min(tile.rows, m), tile.width)
    best, best_cost = Tile(1, machine.lanes(dtype)), math.inf
    for cost, tile in estimates(m, n, k, machine, dtype):
        if cost < best_cost * 0.995:
            best, best_cost = tile, cost
    return best


def tiles(m: int, n: int, k: int, machine: CpuMachine, dtype: str) -> tuple[Tile, ...]:
    """The few tiles worth measuring for an M x K times K x N GEMM: the default, then by their estimate."""
    ranked = sorted(estimates(m, n, k, machine, dtype), key=lambda entry: (entry[0], entry[1].width))
    every = [choose_tile(m, n, k, machine, dtype), *(tile for _, tile in ranked)]
    return tuple(dict.fromkeys(every))[:SPACE]


def every_tile(m: int, n: int, machine: CpuMachine, dtype: str) -> tuple[Tile, ...]:
    """All tiles that fit the registers and are no larger than an M x N result needs."""
    lanes = machine.lanes(dtype)
    return tuple(
        Tile(rows, vectors * lanes)
        for vectors in range(1, min(MOST_VECTORS, math.ceil(n / lanes)) + 1)
        for rows in range(1, min(m, _most_rows(vectors, machine)) + 1)
    )


def pack(b: te.Tensor, width: int, transposed: bool) -> te.Tensor:
    """Panels [batch, ceil(N / width), K, width] of b[batch, K, N] (or [batch, N, K]); the last one zero padded."""
    batch, k, n = dims(b)
    if transposed:
        k, n = n, k

    def element(i: Expr, panel: Expr, row: Expr, lane: Expr) -> Expr | te.TensorSlice:
        column = panel * width + lane
        value = b[i, column, row] if transposed else b[i, row, column]
        return value if n % width == 0 else tirx.if_then_else(column < n, value, const(0, b.dtype))

    return te.compute((batch, math.ceil(n / width), k, width), element, name="pack")


def pack_patches(
    x: te.Tensor,
    groups: int,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    out: Sequence[int],
    width: int,
    spread: Sequence[int] = (),
) -> te.Tensor:
    """im2col straight into panels: x[N, C, *spatial] becomes [N * groups, ceil(P / width), C / groups * K, width].

    P counts output positions, K kernel taps; taps outside the image are zero. Any number of spatial dimensions.
    `spread` s reads an image with s - 1 zeros between neighbours, as a transposed convolution does.
    """
    spread = spread or (1,) * len(kernel)
    n, channels, *image = dims(x)
    per_group, taps, positions = channels // groups, math.prod(kernel), math.prod(out)

    def element(i: Expr, panel: Expr, row: Expr, lane: Expr) -> Expr | te.TensorSlice:
        position, tap = panel * width + lane, tirx.floormod(row, taps)
        conditions = [position < positions] if positions % width else []
        index: list[Expr] = []
        for axis in reversed(range(len(kernel))):
            at = tirx.floormod(position, out[axis]) if axis else position
            step = tirx.floormod(tap, kernel[axis]) if axis else tap
            position, tap = tirx.floordiv(position, out[axis]), tirx.floordiv(tap, kernel[axis])
            place = at * strides[axis] + step * dilations[axis] - pads[axis]
            if spread[axis] > 1:
                conditions.append(tirx.floormod(place, spread[axis]) == 0)
            size = (image[axis] - 1) * spread[axis] + 1
            if pads[axis] or (out[axis] - 1) * strides[axis] + (kernel[axis] - 1) * dilations[axis] >= size:
                conditions += [place >= 0, place < size]
            index.insert(0, tirx.floordiv(place, spread[axis]) if spread[axis] > 1 else place)
        channel = tirx.floormod(i, groups) * per_group + tirx.floordiv(row, taps)
        value = x[(tirx.floordiv(i, groups), channel, *index)]
        return tirx.if_then_else(tirx.all(*conditions), value, const(0, x.dtype)) if conditions else value

    return te.compute((n * groups, math.ceil(positions / width), per_group * taps, width), element, name="patches")


def compute(
    a: te.Tensor,
    panels: te.Tensor,
    shape: Sequence[int],
    parts: tuple[int, int, int],
    rows: int,
    groups: int = 1,
    bias: te.Tensor | None = None,
    rule: str = NAME,
) -> te.Tensor:
    """a[batch or groups or 1, M, K] times panels[batch or 1, ceil(N / width), K, width], written as `shape`.

    Args:
        shape: the output; its first `parts[0]` axes are the batch, the next `parts[1]` M, the last `parts[2]` N.
        rows: height of the register tile.
        groups: where more than 1, the M axis of `shape` holds `groups` times M, group-major, and the batch counts them.
        bias: [groups * M], added along M.
        rule: the schedule rule, one that computes the same.
    """
    lefts, m, k = dims(a)
    rights, count, _, width = dims(panels)
    batch = max(lefts, rights)
    computed = round_up(m, rows)
    r = te.reduce_axis((0, k), "k")

    def product(i: Expr, panel: Expr, y: Expr, lane: Expr) -> Expr:
        row = y if computed == m else tirx.min(y, m - 1)  # the last tile computes rows that are not stored
        left = 0 if lefts == 1 else i if lefts == batch else tirx.floormod(i, lefts)
        return te.sum(a[left, row, r] * panels[0 if rights == 1 else i, panel, r, lane], axis=[r])

    sums = te.compute(
        (batch, count, computed, width),
        product,
        name="gemm",
        attrs={RULE: rule, "graphopt.rows": rows, "graphopt.parts": list(parts), "graphopt.groups": groups},
    )

    def finish(*index: Expr) -> Expr | te.TensorSlice:
        at, start = [], 0
        for length in parts:
            flat: Expr | int = 0
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


def product_axes(sch: s_tir.Schedule, last: SBlockRV, parts: list[int], groups: int) -> Callable[..., list[Expr]]:
    """The map from the output's indices to (batch, m, n)."""
    extents = [int(iterator.dom.extent) for iterator in sch.get(last).iter_vars]
    height = extents[parts[0]] // groups

    def index_map(*index: Expr) -> list[Expr]:
        axes: list[Expr] = []
        start = 0
        for length in parts:
            flat: Expr = tirx.IntImm(index[0].ty.dtype, 0)
            for axis in range(start, start + length):
                flat = flat * extents[axis] + index[axis]
            axes.append(flat)
            start += length
        batch, m, n = axes
        if groups > 1:
            batch, m = batch * groups + tirx.floordiv(m, height), tirx.floormod(m, height)
        return [batch, m, n]

    return index_map


def schedule(sch: s_tir.Schedule, anchor: Block, machine: CpuMachine) -> tirx.PrimFunc:
    """Parallel over (batch, panel, row tile), rows innermost, so that a panel stays in the second-level cache."""
    width = anchor.spatial[3]
    annotations = sch.get(anchor.rv).annotations
    rows, groups = int(annotations["graphopt.rows"]), int(annotations["graphopt.groups"])
    parts = [int(p) for p in annotations["graphopt.parts"]]
    lanes = machine.lanes(dtype_of(sch, anchor.rv))
    last = inline_after(sch, anchor)
    sch = renumber(sch, last, product_axes(sch, last, parts, groups))
    last, gemm = blocks_of(sch)[-1].rv, sch.get_sblock(anchor.name)
    ragged = bool(int(sch.get(last).iter_vars[2].dom.extent) % width)
    if ragged:
        # A store under a condition on the lane would be taken apart into scalars, and indexing the accumulators in a
        # rolled loop would push them out of the registers: so they are copied out, and the copy is stored in a plain
        # loop that LLVM vectorises with masks.
        reads = [str(region.source.name) for region in sch.get(last).reads]
        copy = sch.cache_read(last, reads.index(anchor.name), "local")
    batch, m, n = sch.get_loops(last)
    n_out, n_in = sch.split(n, [None, width])
    m_out, m_in = sch.split(m, [None, rows])
    sch.reorder(batch, n_out, m_out, m_in, n_in)
    task = sch.fuse(batch, n_out, m_out)
    if ragged:
        _copy_out(sch, copy, task, lanes)
    sch.compute_at(gemm, task, preserve_unit_loops=True)
    sch.set_scope(gemm, 0, "local")
    tile_m, tile_n, k = sch.get_loops(gemm)[-3:]
    vectors, lane = sch.split(tile_n, [None, lanes])
    unrolled = 4 if anchor.reduce[0] % 4 == 0 else 1
    k_out, k_in = sch.split(k, [None, unrolled])
    sch.reorder(k_out, k_in, tile_m, vectors, lane)  # a broadcast serves every vector, then dies
    sch.parallel(task)
    for loop in (k_in, vectors, tile_m):
        sch.unroll(loop)
    sch.vectorize(lane)
    if not ragged:
        columns, store_lane = sch.split(n_in, [None, lanes])
        sch.unroll(m_in)
        sch.unroll(columns)
        sch.vectorize(store_lane)
    start = sch.decompose_reduction(gemm, k_out)
    *_, zero_vectors, zero_rows, zero_lane = sch.get_loops(start)
    sch.unroll(zero_vectors)
    sch.unroll(zero_rows)
    sch.vectorize(zero_lane)
    partials.mark(sch, k_out, unrolled)
    prefetch.mark(sch, k_out)
    passes, panels = anchor.spatial[2] // rows, anchor.spatial[1]
    weights = prefetch.weights_of(sch, gemm)
    every = panels if int(weights.shape[0]) == 1 else panels * anchor.spatial[0]

    def place(task: Expr) -> tuple[Expr, Expr]:
        return tirx.floormod(tirx.floordiv(task, passes), every), tirx.floormod(task, passes)

    return prefetch.insert(sch, prefetch.Stream(weights, anchor.reduce[0] * width, passes, 1, place))


def _copy_out(sch: s_tir.Schedule, copy: SBlockRV, task: LoopRV, lanes: int) -> None:
    sch.compute_at(copy, task, preserve_unit_loops=True)
    *_, rows, columns = sch.get_loops(copy)
    vectors, lane = sch.split(columns, [None, lanes])
    sch.unroll(rows)
    sch.unroll(vectors)
    sch.vectorize(lane)
