"""Weight gradients of convolutions on blocked tensors: a register tile of taps and inputs x vectors of outputs.

    dw[co, ci, kh, kw, i, :] = sum over n, y, z of x[n, ci, y*s + kh*d, z*s + kw*d, i] * dy[n, co, y, z, :]

Each position loads `vectors` vectors of dy and broadcasts `rows` numbers of x. The positions are summed in parts of
about a hundred, whose rows of x and dy stay in the first-level cache while all tiles of a task read them, and whose
sums are added in order: neither the threads nor the order of tasks changes a bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import s_tir, te, tirx
from tvm.ir import Expr
from tvm.s_tir.schedule import LoopRV

from graphopt.targets.common.kernels.blocks import RULE, Block, blocks_of, dims
from graphopt.targets.cpu.kernels.tiling import largest_divisor
from graphopt.targets.cpu.machine import CpuMachine

NAME, DEPTHWISE = "weight_gradient", "depthwise_weight_gradient"

PART = 128
"""Positions in a part, or one row of the map: enough to hide loading and storing the sums."""

TASKS = 16
"""Tasks from which the work of any number of threads is even; the images are shared among tasks only below that."""

NEARLY = 1.08
"""Tiles with so many times the fewest cycles are as good."""

UNROLLED_TAPS = 32
"""Taps of a depthwise kernel that are summed side by side, at most."""


@dataclass(frozen=True, slots=True)
class Parts:
    """How the positions of all images are cut: `images` x `rows` x `columns` positions a part, in order."""

    images: int
    rows: int
    columns: int
    places: int
    """Parts of one image."""
    count: int

    @staticmethod
    def of(batch: int, rows: int, columns: int, flat: bool) -> Parts:
        """The parts of `batch` maps; `flat` cuts anywhere in a map, not only between its rows."""
        if flat:
            length = largest_divisor(rows * columns, PART)
            height, places = 1, rows * columns // length
        else:
            length, height = columns, largest_divisor(rows, PART // columns)
            places = rows // height
        images = largest_divisor(batch, PART // (height * length)) if places == 1 else 1
        return Parts(images, height, length, places, batch // images * places)


@dataclass(frozen=True, slots=True)
class Tile:
    """Sums in registers: `planes` x `taps` x `inputs` rows times `vectors` vectors of outputs."""

    planes: int
    taps: int
    inputs: int
    vectors: int

    @property
    def rows(self) -> int:
        """Numbers of x that a step broadcasts."""
        return self.planes * self.taps * self.inputs


def choose_tile(planes: int, taps: int, inputs: int, vectors: int, machine: CpuMachine) -> Tile:
    """Of the tiles with nearly the fewest cycles per product, the one with the fewest vectors, then the most rows.

    Two multiply-adds and two loads each cycle, four cycles of latency. Few vectors of dy leave the first-level cache to
    x, whose broadcasts are operands of the multiply-adds. Planes and taps are rows of the tile where blocks have few
    inputs.
    """
    few = inputs < 4
    offered: list[tuple[float, Tile]] = []
    for count in (1, 2, 3, 4):
        limit = (machine.level.registers - count - 1) // count
        for plane in _divisors(planes) if few else [1]:
            for tap in _divisors(taps) if few else [1]:
                for channel in _divisors(inputs):
                    tile = Tile(plane, tap, channel, count)
                    if vectors % count == 0 and tile.rows <= limit:
                        products = tile.rows * count
                        cycles = max(products / 2, (tile.rows + count) / 2, 4)
                        offered.append((cycles / products, tile))
    least = min(cost for cost, _ in offered)
    return min((tile for cost, tile in offered if cost <= NEARLY * least), key=lambda tile: (tile.vectors, -tile.rows))


def _divisors(extent: int) -> list[int]:
    return [d for d in range(1, extent + 1) if extent % d == 0]


def compute(
    x: te.Tensor,
    dy: te.Tensor,
    kernel: tuple[int, int],
    strides: tuple[int, int],
    dilations: tuple[int, int],
    group: int,
    machine: CpuMachine,
) -> te.Tensor:
    """The sums [S, CO, CI / group, KH, KW, bi, b] of S shares of the images, which `added` adds.

    Args:
        x: [N, CI, H, W, bi], already padded.
        dy: [N, CO, OH, OW, b].
        kernel: (KH, KW).
    """
    n, ci, _, width, bi = dims(x)
    _, co, out_h, out_w, b = dims(dy)
    (kh, kw), ci_group, co_group = kernel, ci // group, co // group
    flat = kernel == strides == (1, 1) and width == out_w
    parts = Parts.of(n, out_h, out_w, flat)
    tile = choose_tile(ci_group, kw, bi, co_group, machine)
    tasks = co // tile.vectors * (ci_group // tile.planes)
    by_row = tasks < TASKS
    shares = shares_of(parts.count, tasks * (kh if by_row else 1))
    rn = te.reduce_axis((0, parts.images), "n")
    ry, rz = te.reduce_axis((0, parts.rows), "y"), te.reduce_axis((0, parts.columns), "z")

    def product(q: Expr, o: Expr, c: Expr, u: Expr, v: Expr, i: Expr, lane: Expr) -> Expr:
        image, y, z = _position(parts, q, rn, ry, rz, out_w, flat)
        row, column = y * strides[0] + u * dilations[0], z * strides[1] + v * dilations[1]
        channel = c if group == 1 else tirx.floordiv(o, co_group) * ci_group + c
        return te.sum(x[image, channel, row, column, i] * dy[image, o, y, z, lane], axis=[rn, ry, rz])

    shape = (co, ci_group, kh, kw, bi, b)
    attributes = {
        RULE: NAME,
        "graphopt.tile": [tile.planes, tile.taps, tile.inputs, tile.vectors],
        "graphopt.by_row": int(by_row),
    }
    sums = te.compute((parts.count, *shape), product, name="part", attrs=attributes)
    return _shared(sums, shares)


def depthwise(
    x: te.Tensor, dy: te.Tensor, kernel: tuple[int, int], strides: tuple[int, int], dilations: tuple[int, int]
) -> te.Tensor:
    """The sums [S, CB, KH, KW, b] of S shares of the images of padded x[N, CB, H, W, b] and dy[N, CB, OH, OW, b]."""
    n, cb, _, _, b = dims(x)
    _, _, out_h, out_w, _ = dims(dy)
    parts = Parts.of(n, out_h, out_w, False)
    rn = te.reduce_axis((0, parts.images), "n")
    ry, rz = te.reduce_axis((0, parts.rows), "y"), te.reduce_axis((0, parts.columns), "z")

    def product(q: Expr, c: Expr, u: Expr, v: Expr, lane: Expr) -> Expr:
        image, y, z = _position(parts, q, rn, ry, rz, out_w, False)
        row, column = y * strides[0] + u * dilations[0], z * strides[1] + v * dilations[1]
        return te.sum(x[image, c, row, column, lane] * dy[image, c, y, z, lane], axis=[rn, ry, rz])

    attributes = {RULE: DEPTHWISE}
    sums = te.compute((parts.count, cb, *kernel, b), product, name="part", attrs=attributes)
    return _shared(sums, shares_of(parts.count, cb))


def _position(parts: Parts, q: Expr, rn: Expr, ry: Expr, rz: Expr, width: int, flat: bool) -> tuple[Expr, Expr, Expr]:
    """(image, row, column) of a position of part `q`."""
    image = tirx.floordiv(q, parts.places) * parts.images + rn
    place = tirx.floormod(q, parts.places)
    if not flat:
        return image, place * parts.rows + ry, rz
    at = place * parts.columns + rz
    return image, tirx.floordiv(at, width), tirx.floormod(at, width)


def shares_of(parts: int, tasks: int) -> int:
    """In how many shares the parts are added, so that there are enough tasks."""
    if tasks >= TASKS:
        return 1
    return next(d for d in range(1, parts + 1) if parts % d == 0 and (d * tasks >= TASKS or d == parts))


def _shared(sums: te.Tensor, shares: int) -> te.Tensor:
    """[S, ...] of sums[parts, ...]: the parts of each share, added in order."""
    count, *shape = dims(sums)
    part = te.reduce_axis((0, count // shares), "part")

    def total(s: Expr, *index: Expr) -> Expr:
        return te.sum(sums[(s * (count // shares) + part, *index)], axis=[part])

    return te.compute((shares, *shape), total, name="total")


def added(sums: te.Tensor) -> te.Tensor:
    """The sum of the S shares of sums[S, ...], in order."""
    count, *shape = dims(sums)
    share = te.reduce_axis((0, count), "share")
    return te.compute(tuple(shape), lambda *index: te.sum(sums[(share, *index)], axis=[share]), name="added")


def schedule(sch: s_tir.Schedule, anchor: Block, machine: CpuMachine) -> None:
    """One task per (share, tile of outputs, planes of inputs), and per row of the kernel where those are few."""
    annotations = sch.get(anchor.rv).annotations
    planes, taps, inputs, vectors = (int(value) for value in annotations["graphopt.tile"])
    total = blocks_of(sch)[-1].rv
    share, co, ci, kh, kw, i, lane, part = sch.get_loops(total)
    co_out, co_in = sch.split(co, [None, vectors])
    ci_out, ci_in = sch.split(ci, [None, planes])
    kw_out, kw_in = sch.split(kw, [None, taps])
    i_out, i_in = sch.split(i, [None, inputs])
    by_row = int(annotations["graphopt.by_row"])
    outer = [share, co_out, ci_out, *([kh] if by_row else [])]
    inner = [*([] if by_row else [kh]), kw_out, i_out]
    sch.reorder(*outer, part, *inner, co_in, ci_in, kw_in, i_in, lane)
    task = sch.fuse(*outer)
    _in_registers(sch, anchor, task, i_out, 4)
    for loop in (co_in, ci_in, kw_in, i_in):
        sch.unroll(loop)
    sch.vectorize(lane)
    _start_at_zero(sch, total, part)


def schedule_depthwise(sch: s_tir.Schedule, anchor: Block, machine: CpuMachine) -> None:
    """One task per (share, channel block); as many taps side by side as the registers hold."""
    _, _, kh_extent, kw_extent, _ = anchor.spatial
    limit = min(UNROLLED_TAPS, machine.level.registers - 2)
    taps = largest_divisor(kw_extent, limit)
    rows = largest_divisor(kh_extent, limit // taps) if taps == kw_extent else 1
    total = blocks_of(sch)[-1].rv
    share, c, kh, kw, lane, part = sch.get_loops(total)
    kh_out, kh_in = sch.split(kh, [None, rows])
    kw_out, kw_in = sch.split(kw, [None, taps])
    sch.reorder(share, c, part, kh_out, kw_out, kh_in, kw_in, lane)
    task = sch.fuse(share, c)
    _in_registers(sch, anchor, task, kw_out, 2)
    for loop in (kh_in, kw_in):
        sch.unroll(loop)
    sch.vectorize(lane)
    _start_at_zero(sch, total, part)


def _in_registers(sch: s_tir.Schedule, anchor: Block, task: LoopRV, at: LoopRV, unrolled: int) -> None:
    """The sums of one part and one tile, whose last `unrolled` loops and lane are the tile."""
    sch.compute_at(anchor.rv, at, preserve_unit_loops=True)
    sch.set_scope(anchor.rv, 0, "local")
    sch.parallel(task)  # before a reduction is decomposed: after that TVM refuses it
    loops = list(sch.get_loops(anchor.rv))
    reduced, tile = loops[-3:], loops[-4 - unrolled : -3]
    # A broadcast serves every vector, then dies.
    order: Sequence[LoopRV] = [*tile[1:-1], tile[0]] if unrolled > 2 else tile[:-1]
    sch.reorder(*reduced, *order, tile[-1])
    for loop in order:
        sch.unroll(loop)
    sch.vectorize(tile[-1])
    start = sch.decompose_reduction(anchor.rv, reduced[0])
    *zeros, lane = sch.get_loops(start)[-1 - unrolled :]
    for loop in zeros:
        sch.unroll(loop)
    sch.vectorize(lane)


def _start_at_zero(sch: s_tir.Schedule, total: s_tir.schedule.SBlockRV, part: LoopRV) -> None:
    """Clear the totals before their first part."""
    start = sch.decompose_reduction(total, part)
    sch.vectorize(sch.get_loops(start)[-1])
