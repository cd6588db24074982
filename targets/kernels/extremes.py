"""The largest or smallest element along the last axis, of any length.

A vector of partial results runs along the row. Where the row is no multiple of it, its last step overlaps the one
before: to see an element twice changes no maximum. Few long rows are cut into parts, one for each task:

    partial[row, part, lane] = max over k of x[row, min((part * steps + k) * width, n - width) + lane]
    y[row]                   = max over part, lane of partial[row, part, lane]
"""

from __future__ import annotations

import math
from typing import Any

from tvm import s_tir, te, tirx

from graphopt.targets.kernels.common import RULE, Block, blocks_of, const, dims, dtype_of, largest_divisor
from graphopt.targets.machine import CpuMachine

NAME = "extreme"

VECTORS = 4
"""Partial results per lane, so that one step need not wait for the step before."""

MIN_PARALLEL = 1 << 15
"""Elements below which waking another core costs more than it saves."""


def reducer(largest: bool, dtype: str) -> Any:
    """Maximum or minimum; of no elements it is the infinity, or the end of the integers' range."""
    bound = const(-math.inf if largest else math.inf, dtype) if dtype.startswith("float") else None
    if bound is None:
        bound = tirx.min_value(dtype) if largest else tirx.max_value(dtype)
    pick = tirx.max if largest else tirx.min
    return te.comm_reducer(lambda a, b: pick(a, b), lambda _: bound, name="extreme")


def compute(x: Any, largest: bool, machine: CpuMachine) -> Any:
    """y[...], the extreme along the last axis of x[..., n], n > 0."""
    *outer, n = dims(x)
    dtype = str(x.dtype)
    width = min(VECTORS * machine.lanes(dtype), 1 << (n.bit_length() - 1))
    rows, steps = math.prod(outer), math.ceil(n / width)
    tasks = 4 * machine.cores
    parts = 1 if rows >= tasks or rows * n < MIN_PARALLEL else min(math.ceil(tasks / rows), steps)
    steps = math.ceil(steps / parts)
    exact = parts * steps * width == n
    pick = reducer(largest, dtype)
    k, part, lane = te.reduce_axis((0, steps), "k"), te.reduce_axis((0, parts), "part"), te.reduce_axis((0, width), "q")

    def run(*index: Any) -> Any:
        *row, piece, place = index
        start = (piece * steps + k) * width
        return pick(x[(*row, (start if exact else tirx.min(start, n - width)) + place)], axis=[k])

    partial = te.compute((*outer, parts, width), run, name="partial", attrs={RULE: NAME})

    def finish(*index: Any) -> Any:
        return pick(partial[(*index, part, lane)], axis=[part, lane])

    return te.compute(tuple(outer), finish, name="extreme")


def schedule(sch: s_tir.Schedule, anchor: Block, machine: CpuMachine) -> None:
    """What is computed before goes into the vectors; a task is a row, or a part of one."""
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
    lane, step = sch.get_loops(partial.rv)[-2:]
    lanes = largest_divisor(width, machine.lanes(dtype_of(sch, partial.rv)))
    vector, lane = sch.split(lane, [None, lanes])
    sch.reorder(step, vector, lane)
    sch.unroll(vector)
    sch.vectorize(lane)
    start = sch.decompose_reduction(partial.rv, step)
    *_, start_vector, start_lane = sch.get_loops(start)
    sch.unroll(start_vector)
    sch.vectorize(start_lane)
