"""The largest or smallest element along the last axis, of any length.

A vector of partial results runs along the row. Where the row is no multiple of it, its last step overlaps the one
before: reading an element twice changes no maximum. Few long rows are cut into parts, one for each task:

    partial[row, part, lane] = max over k of x[row, min((part * steps + k) * width, n - width) + lane]
    y[row]                   = max over part, lane of partial[row, part, lane]

Both ends of all elements are computed in one pass: the largest of x, and of -x.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import s_tir, te, tirx
from tvm.ir import Expr
from tvm.s_tir.schedule import LoopRV

from graphopt.targets.common.kernels.blocks import RULE, Block, blocks_of, const, dims, dtype_of
from graphopt.targets.cpu.kernels.tiling import largest_divisor
from graphopt.targets.cpu.machine import CpuMachine

NAME = "extreme"
BOTH = "ends"

VECTORS = 4
"""Partial results per lane, so that a step does not wait for the step before it."""

MIN_PARALLEL = 1 << 15
"""Elements below which waking another core costs more than it saves."""


def reducer(largest: bool, dtype: str) -> Any:
    """Maximum or minimum; of no elements it is the infinity, or the end of the integers' range."""
    bound = const(-math.inf if largest else math.inf, dtype) if dtype.startswith("float") else None
    if bound is None:
        bound = tirx.min_value(dtype) if largest else tirx.max_value(dtype)
    pick = tirx.max if largest else tirx.min
    return te.comm_reducer(lambda a, b: pick(a, b), lambda _: bound, name="extreme")


def compute(x: te.Tensor, largest: bool, machine: CpuMachine) -> te.Tensor:
    """y[...], the extreme along the last axis of x[..., n], n > 0."""
    *outer, n = dims(x)
    dtype = str(x.dtype)
    width, parts, steps = _cut(math.prod(outer), n, dtype, machine)
    start = _start(n, width, parts, steps)
    pick = reducer(largest, dtype)
    k, part, lane = te.reduce_axis((0, steps), "k"), te.reduce_axis((0, parts), "part"), te.reduce_axis((0, width), "q")

    def run(*index: Expr) -> Expr:
        *row, piece, place = index
        return pick(x[(*row, start(piece, k) + place)], axis=[k])

    partial = te.compute((*outer, parts, width), run, name="partial", attrs={RULE: NAME})

    def finish(*index: Expr) -> Expr:
        return pick(partial[(*index, part, lane)], axis=[part, lane])

    return te.compute(tuple(outer), finish, name="extreme")


def ends(x: te.Tensor, machine: CpuMachine) -> te.Tensor:
    """y[2], the largest of x and the largest of -x, of floats, of one element or more."""
    shape, dtype = dims(x), str(x.dtype)
    n = math.prod(shape)
    width, parts, steps = _cut(1, n, dtype, machine)
    start = _start(n, width, parts, steps)
    pick = reducer(True, dtype)
    k, part, lane = te.reduce_axis((0, steps), "k"), te.reduce_axis((0, parts), "part"), te.reduce_axis((0, width), "q")

    def run(piece: Expr, end: Expr, place: Expr) -> Expr:
        value = x[_unravelled(start(piece, k) + place, shape)]
        return pick(tirx.Select(end == 0, value, value * const(-1.0, dtype)), axis=[k])

    partial = te.compute((parts, 2, width), run, name="partial", attrs={RULE: BOTH})
    return te.compute((2,), lambda end: pick(partial[part, end, lane], axis=[part, lane]), name="ends")


def _unravelled(place: Expr, shape: Sequence[int]) -> tuple[Expr, ...]:
    """The indices of an element by its place in memory, which lowering makes one number again."""
    indices: list[Expr] = []
    for extent in reversed(shape[1:]):
        indices.append(tirx.floormod(place, extent))
        place = tirx.floordiv(place, extent)
    return (place, *reversed(indices)) if shape else ()


def _cut(rows: int, n: int, dtype: str, machine: CpuMachine) -> tuple[int, int, int]:
    """Elements of a step, parts of a row, and steps of a part."""
    width = min(VECTORS * machine.lanes(dtype), 1 << (n.bit_length() - 1))
    steps = math.ceil(n / width)
    tasks = 4 * machine.cores
    parts = 1 if rows >= tasks or rows * n < MIN_PARALLEL else min(math.ceil(tasks / rows), steps)
    return width, parts, math.ceil(steps / parts)


def _start(n: int, width: int, parts: int, steps: int) -> Callable[[Expr, tirx.IterVar], Expr]:
    """Where a step of a part begins in a row."""

    def start(part: Expr, step: tirx.IterVar) -> Expr:
        place = (part * steps + step) * width
        return place if parts * steps * width == n else tirx.min(place, n - width)

    return start


def schedule(sch: s_tir.Schedule, anchor: Block, machine: CpuMachine) -> None:
    """Inline the producers into the vectors; a task is a row, or a part of one."""
    for block in blocks_of(sch):
        if block.name == anchor.name:
            break
        sch.compute_inline(block.rv)
    *before, last = blocks_of(sch)
    partial = next(block for block in before if block.name == anchor.name)
    rows, parts, width = math.prod(partial.spatial[:-2]), *partial.spatial[-2:]
    parallel = rows * parts * width * partial.reduce[0] >= MIN_PARALLEL
    loops = sch.get_loops(last.rv)
    outer = len(partial.spatial) - 2
    if parts == 1 and outer:
        row = sch.fuse(*loops[:outer])
        sch.compute_at(partial.rv, row, preserve_unit_loops=True)
        sch.set_scope(partial.rv, 0, "local")
        if parallel:
            sch.parallel(row)
    elif parallel:
        sch.parallel(sch.fuse(*sch.get_loops(partial.rv)[: outer + 1]))
    _vectors(sch, partial, machine, ())


def schedule_ends(sch: s_tir.Schedule, anchor: Block, machine: CpuMachine) -> None:
    """A task is a part, which is read once for both ends."""
    for block in blocks_of(sch):
        if block.name == anchor.name:
            break
        sch.compute_inline(block.rv)
    partial = next(block for block in blocks_of(sch) if block.name == anchor.name)
    parts, _, width = partial.spatial
    task, end, _, _ = sch.get_loops(partial.rv)
    if parts * width * partial.reduce[0] >= MIN_PARALLEL:
        sch.parallel(task)
    _vectors(sch, partial, machine, (end,))


def _vectors(sch: s_tir.Schedule, partial: Block, machine: CpuMachine, repeated: tuple[LoopRV, ...]) -> None:
    """Vectorize along the lanes in every step, for each of the `repeated` loops."""
    lane, step = sch.get_loops(partial.rv)[-2:]
    lanes = largest_divisor(partial.spatial[-1], machine.lanes(dtype_of(sch, partial.rv)))
    vector, lane = sch.split(lane, [None, lanes])
    sch.reorder(step, *repeated, vector, lane)
    for loop in (*repeated, vector):
        sch.unroll(loop)
    sch.vectorize(lane)
    start = sch.decompose_reduction(partial.rv, step)
    *loops, start_lane = sch.get_loops(start)
    for loop in loops[-1 - len(repeated) :]:
        sch.unroll(loop)
    sch.vectorize(start_lane)
