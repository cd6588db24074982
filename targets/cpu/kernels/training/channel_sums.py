"""Sums over all elements of a channel, of one or two terms in one pass: batch statistics and their gradients.

    planar   rows[n c, k] = sum over p of term k        sums[k, c] = sum over n of rows[n c, k]
    blocked  part[q, cb, k, :] = sum of some hundred positions    sums[k, cb, :] = sum over q of part[q, cb, k, :]

Short sums are kept in the dtype of the elements, their sums in double precision, in an order that the shapes decide.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import s_tir, te, tirx
from tvm.ir import Expr

from graphopt.targets.common.kernels.blocks import RULE, Block, blocks_of, dims
from graphopt.targets.cpu.kernels import rowwise
from graphopt.targets.cpu.kernels.training.weight_gradient import Parts, shares_of
from graphopt.targets.cpu.machine import CpuMachine

BLOCKED = "channel_sums_blocked"

Term = Callable[..., Expr]
"""(term number, indices of an element) -> what is added; the number is an integer."""


def rows(shape: tuple[int, int, int], dtype: str, count: int, term: Term, lanes: int) -> te.Tensor:
    """[N * C, count] of `shape` [N, C, P]; `term`(k, row, p) is that of element p of row n * C + c."""
    n, channels, plane = shape
    both = n * channels, plane, lanes, te.sum, rowwise.added
    first = rowwise.reduced(*both, lambda i, p: term(0, i, p), "first")
    if count == 1:
        return te.compute((n * channels, 1), lambda i, _: first[i], name="rows")
    second = rowwise.reduced(*both, lambda i, p: term(1, i, p), "second")
    return te.compute((n * channels, 2), lambda i, k: tirx.Select(k == 0, first[i], second[i]), name="rows")


def over_images(rows_of: te.Tensor, images: int) -> te.Tensor:
    """[count, C] in double precision of rows[N * C, count]."""
    total, count = dims(rows_of)
    channels = total // images
    r = te.reduce_axis((0, images), "n")
    return te.compute(
        (count, channels),
        lambda k, c: te.sum(rows_of[r * channels + c, k].astype("float64"), axis=[r]),
        name="over_images",
    )


def blocked(shape: tuple[int, ...], count: int, term: Term) -> te.Tensor:
    """[S, CB, count, b] in double precision of `shape` [N, CB, H, W, b], S shares of the positions.

    `term`(k, n, cb, y, x, lane) is that of an element.
    """
    n, cb, h, w, b = shape
    parts = Parts.of(n, h, w, False)
    rn = te.reduce_axis((0, parts.images), "n")
    ry, rz = te.reduce_axis((0, parts.rows), "y"), te.reduce_axis((0, parts.columns), "z")

    def summed(q: Expr, c: Expr, k: Expr, lane: Expr) -> Expr:
        image = tirx.floordiv(q, parts.places) * parts.images + rn
        at = image, c, tirx.floormod(q, parts.places) * parts.rows + ry, rz, lane
        value = term(0, *at) if count == 1 else tirx.Select(k == 0, term(0, *at), term(1, *at))
        return te.sum(value, axis=[rn, ry, rz])

    part = te.compute((parts.count, cb, count, b), summed, name="part", attrs={RULE: BLOCKED})
    shares = shares_of(parts.count, cb)
    each = parts.count // shares
    r = te.reduce_axis((0, each), "part")
    return te.compute(
        (shares, cb, count, b),
        lambda s, c, k, lane: te.sum(part[s * each + r, c, k, lane].astype("float64"), axis=[r]),
        name="total",
    )


def over_shares(sums: te.Tensor) -> te.Tensor:
    """[count, CB, b] of sums[S, CB, count, b]."""
    shares, cb, count, b = dims(sums)
    r = te.reduce_axis((0, shares), "share")
    return te.compute((count, cb, b), lambda k, c, lane: te.sum(sums[r, c, k, lane], axis=[r]), name="over_shares")


def schedule_blocked(sch: s_tir.Schedule, anchor: Block, machine: CpuMachine) -> None:
    """One task per (share, channel block); the terms side by side in registers."""
    total = blocks_of(sch)[-1].rv
    share, c, k, lane, part = sch.get_loops(total)
    sch.reorder(share, c, part, k, lane)
    task = sch.fuse(share, c)
    sch.compute_at(anchor.rv, part, preserve_unit_loops=True)
    sch.set_scope(anchor.rv, 0, "local")
    sch.parallel(task)
    *_, terms, inner, rn, ry, rz = sch.get_loops(anchor.rv)
    sch.reorder(rn, ry, rz, terms, inner)
    for loop in (terms, k):
        sch.unroll(loop)
    for loop in (inner, lane):
        sch.vectorize(loop)
    start = sch.decompose_reduction(anchor.rv, rn)
    zero, zero_lane = sch.get_loops(start)[-2:]
    sch.unroll(zero)
    sch.vectorize(zero_lane)
    start = sch.decompose_reduction(total, part)
    sch.vectorize(sch.get_loops(start)[-1])
