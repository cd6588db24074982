"""Weights of convolutions to and from their blocked layout, by squares transposed in registers.

    w[O, C, kh, kw]  <->  packed[CO, CI, kh, kw, b, b]      a row of w holds b * kh * kw numbers of a block
    packed[CO, CI, kh, kw, i, o]  ->  [CI, CO, kh, kw, o, i] with the taps in reverse

Every load and store is a full vector (`squares`).
"""

from __future__ import annotations

from tvm import s_tir, te, tirx
from tvm.ir import Expr
from tvm.s_tir.schedule import SBlockRV

from graphopt.ops.winograd import KERNEL, matrices
from graphopt.targets.common.kernels.blocks import RULE, SCHEDULED, Block, blocks_of, const, dims, round_up
from graphopt.targets.cpu.kernels.conv.winograd import entry, zero_unrolled
from graphopt.targets.cpu.kernels.squares import transposed
from graphopt.targets.cpu.machine import CpuMachine

WINOGRAD = "winograd_weight"

INPUTS = 4
"""Inputs of a task of `winograd`, whose half-transformed taps stay on the stack."""


def possible(channels: int, inner: int, lanes: int, dtype: str) -> bool:
    """Whether blocks of `inner` x `lanes` are full squares of vectors."""
    return dtype == "float32" and inner == lanes and lanes in (4, 8, 16) and channels % lanes == 0


def move(shape: tuple[int, ...], b: int, dtype: str, pack: bool) -> tirx.PrimFunc:
    """w = `shape` [O, C, kh, kw] -> packed [CO, C / b, kh, kw, b, b], zeros in padded lanes; or back unless `pack`."""
    outputs, channels, kh, kw = shape
    taps, out_blocks, in_blocks = kh * kw, round_up(outputs, b) // b, channels // b
    planar = tirx.decl_buffer([_extent(d) for d in shape], dtype, "planar")
    blocked = tirx.decl_buffer([_extent(d) for d in (out_blocks, in_blocks, kh, kw, b, b)], dtype, "blocked")
    task, square = _index("task"), _index("square")
    out_block, in_block = task // in_blocks, task % in_blocks
    zero = _extent(0)

    # A row's numbers of one block are contiguous, so they are a run of columns of its first channel and tap.
    def row(o: int) -> list[Expr]:
        return [out_block * b + o, in_block * b, zero, tirx.Ramp(square * b, _extent(1), b)]

    def lanes(j: int) -> list[Expr]:
        place = square * b + j
        tap = place % taps
        return [out_block, in_block, tap // kw, tap % kw, place // taps, tirx.Ramp(zero, _extent(1), b)]

    def body(rows: int) -> tirx.SeqStmt:
        if pack:
            empty = tirx.Broadcast(const(0, dtype), b)
            loads: list[Expr] = [tirx.BufferLoad(planar, row(o)) if o < rows else empty for o in range(b)]
            return transposed(loads, dtype, lambda v: [tirx.BufferStore(blocked, v[j], lanes(j)) for j in range(b)])
        loads = [tirx.BufferLoad(blocked, lanes(j)) for j in range(b)]
        return transposed(loads, dtype, lambda v: [tirx.BufferStore(planar, v[o], row(o)) for o in range(rows)])

    inner: tirx.Stmt = body(b)
    if outputs % b:
        last = body(outputs % b)
        inner = tirx.IfThenElse(out_block < out_blocks - 1, inner, last) if out_blocks > 1 else last
    inner = tirx.For(square, zero, _extent(taps), tirx.ForKind.SERIAL, inner)
    buffers = [planar, blocked] if pack else [blocked, planar]
    return _function(buffers, task, out_blocks * in_blocks, inner)


def flip(shape: tuple[int, ...], group: int, dtype: str) -> tirx.PrimFunc:
    """packed = `shape` [CO, CI, kh, kw, b, b] -> [group * CI, CO / group, kh, kw, b, b], taps in reverse."""
    out_blocks, in_blocks, kh, kw, b, _ = shape
    each = out_blocks // group
    x = tirx.decl_buffer([_extent(d) for d in shape], dtype, "packed")
    y = tirx.decl_buffer([_extent(d) for d in (group * in_blocks, each, kh, kw, b, b)], dtype, "flipped")
    task, tap = _index("task"), _index("tap")
    to, of = task // each, task % each
    source = [to // in_blocks * each + of, to % in_blocks, kh - 1 - tap // kw, kw - 1 - tap % kw]
    lanes = tirx.Ramp(_extent(0), _extent(1), b)
    loads: list[Expr] = [tirx.BufferLoad(x, [*source, _extent(i), lanes]) for i in range(b)]

    def stores(v: list[tirx.Var]) -> list[tirx.BufferStore]:
        return [tirx.BufferStore(y, v[j], [to, of, tap // kw, tap % kw, _extent(j), lanes]) for j in range(b)]

    body = tirx.For(tap, _extent(0), _extent(kh * kw), tirx.ForKind.SERIAL, transposed(loads, dtype, stores))
    return _function([x, y], task, group * in_blocks * each, body)


def _function(buffers: list[tirx.Buffer], task: tirx.Var, tasks: int, body: tirx.Stmt) -> tirx.PrimFunc:
    loop = tirx.For(task, _extent(0), _extent(tasks), tirx.ForKind.PARALLEL, body)
    root = s_tir.SBlockRealize([], True, s_tir.SBlock([], [], [], "root", loop))
    return tirx.PrimFunc(buffers, root).with_attr({SCHEDULED: 1, "s_tir": True, "tirx.noalias": True})


def _extent(value: int) -> tirx.IntImm:
    return tirx.IntImm("int64", value)


def _index(name: str) -> tirx.Var:
    return tirx.Var(name, "int64")


def winograd(w: te.Tensor, m: int) -> te.Tensor:
    """u[taps, CO, CI, bi, b] = G w G^T of packed w[CO, CI, 3, 3, bi, b]."""
    co, ci, _, _, bi, b = dims(w)
    g = matrices(m)[1]
    a = len(g)
    ra, rb = te.reduce_axis((0, KERNEL), "a"), te.reduce_axis((0, KERNEL), "b")

    def along_rows(o: Expr, c: Expr, i: Expr, u: Expr, v: Expr, lane: Expr) -> Expr:
        return te.sum(w[o, c, ra, v, i, lane] * entry(g, u, ra, w.dtype), axis=[ra])

    half = te.compute((co, ci, bi, a, KERNEL, b), along_rows, name="half")

    def along_columns(t: Expr, o: Expr, c: Expr, i: Expr, lane: Expr) -> Expr:
        factor = entry(g, tirx.floormod(t, a), rb, w.dtype)
        return te.sum(half[o, c, i, tirx.floordiv(t, a), rb, lane] * factor, axis=[rb])

    return te.compute((a * a, co, ci, bi, b), along_columns, name="transform", attrs={RULE: WINOGRAD})


def schedule_winograd(sch: s_tir.Schedule, anchor: Block, machine: CpuMachine) -> None:
    """One task per block of weights; a few inputs at a time, so that each tap is stored in a run of lines."""
    half = next(block.rv for block in blocks_of(sch) if block.name == "half")
    t, o, c, i, lane, rb = sch.get_loops(anchor.rv)
    i_out, i_in = sch.split(i, [None, INPUTS if anchor.spatial[3] % INPUTS == 0 else 1])
    size = int(sch.get(t).extent)
    rows, columns = sch.split(t, [None, _root(size)])
    sch.reorder(o, c, i_out, rows, columns, i_in, rb, lane)
    task = sch.fuse(o, c)
    sch.compute_at(half, i_out, preserve_unit_loops=True)
    sch.set_scope(half, 0, "local")
    sch.parallel(task)
    for loop in (rows, columns, rb):
        sch.unroll(loop)
    sch.vectorize(lane)
    _unroll_half(sch, half)
    zero_unrolled(sch, sch.decompose_reduction(anchor.rv, rb), 0)


def _unroll_half(sch: s_tir.Schedule, half: SBlockRV) -> None:
    """Straight-line code of the transform along rows, for one input after another."""
    *_, u, v, lane, ra = sch.get_loops(half)
    sch.reorder(u, v, ra, lane)
    for loop in (u, v, ra):
        sch.unroll(loop)
    sch.vectorize(lane)
    zero_unrolled(sch, sch.decompose_reduction(half, ra), 2)


def _root(square: int) -> int:
    return next(edge for edge in range(1, square + 1) if edge * edge == square)
