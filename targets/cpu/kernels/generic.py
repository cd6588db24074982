"""The schedule of kernels without a rule: inlined elementwise blocks, parallel outer loops, vectorized inner loops."""

from __future__ import annotations

import math

from tvm import s_tir, tirx
from tvm.ir import Expr, Range
from tvm.s_tir.schedule import LoopRV

from graphopt.targets.common.kernels.blocks import Block, blocks_of, dtype_of
from graphopt.targets.common.tir import ieee
from graphopt.targets.common.tir.expressions import parts
from graphopt.targets.cpu.kernels.tiling import largest_divisor, several
from graphopt.targets.cpu.machine import CpuMachine

MIN_PARALLEL = 1 << 14
"""Elements (or reduction steps) below which waking another core costs more than it saves."""

MIN_INNER = 64
"""Elements that a task's plain inner loops should have, so that LLVM has something to vectorise."""


def schedule(sch: s_tir.Schedule, machine: CpuMachine) -> None:
    """Inline elementwise blocks into their consumers, then schedule each remaining block by itself."""
    for block in blocks_of(sch)[:-1]:
        if block.reduce or ieee.holds_names(sch.get(block.rv)):
            continue
        try:
            sch.compute_inline(block.rv)
        except Exception:  # noqa: S112  TVM raises ScheduleError for an output, or for an access it cannot follow
            continue
    for block in blocks_of(sch):
        loops = sch.get_loops(block.rv)
        if not loops or len(loops) != len(block.spatial) + len(block.reduce):
            continue
        if block.reduce:
            _reduction(sch, block, machine)
        elif _repeats_bfloat16(sch, block) or _depends_on_lane(sch, block) or not _contiguous(sch, block, machine):
            _rows(sch, block)
        else:
            _vectors(sch, block, machine)


def _vectors(sch: s_tir.Schedule, block: Block, machine: CpuMachine) -> None:
    """Vectorize the innermost elements, and run all other loops in parallel."""
    lanes = machine.lanes(dtype_of(sch, block.rv))
    *outer, inner = sch.get_loops(block.rv)
    extent = block.spatial[-1]
    # The innermost loops are fused only as far as a vector needs: index arithmetic on fused loops is not free.
    while extent % lanes and outer:
        inner = sch.fuse(outer.pop(), inner)
        extent *= block.spatial[len(outer)]
    width = largest_divisor(extent, lanes)
    step, lane = sch.split(inner, [None, width])
    if width > 1:
        sch.vectorize(lane)
    task = sch.fuse(*outer, step) if outer else step
    if math.prod(block.spatial) >= MIN_PARALLEL:
        sch.parallel(task)


def _rows(sch: s_tir.Schedule, block: Block) -> None:
    """Plain inner loops, which LLVM vectorizes with masks where a condition or an odd extent defeats our vectors."""
    loops = list(sch.get_loops(block.rv))
    kept, inner = len(loops) - 1, block.spatial[-1]
    while kept > 1 and inner < MIN_INNER:
        kept -= 1
        inner *= block.spatial[kept]
    if kept < 1 or math.prod(block.spatial) < MIN_PARALLEL:
        return
    sch.parallel(sch.fuse(*loops[:kept]) if kept > 1 else loops[0])


def _reduction(sch: s_tir.Schedule, block: Block, machine: CpuMachine) -> None:
    """Vectorize along the axis that is contiguous in the operands, reduced or kept."""
    loops = list(sch.get_loops(block.rv))
    body = sch.get(block.rv)
    kinds = [int(iterator.iter_type) for iterator in body.iter_vars]
    work = math.prod(block.spatial) * math.prod(block.reduce)
    if kinds != sorted(kinds) or not block.spatial:  # a reduction axis precedes a spatial axis
        return
    spatial, reduced = loops[: len(block.spatial)], loops[len(block.spatial) :]
    lanes = machine.lanes(dtype_of(sch, block.rv))
    contiguous = [r.region[-1].min for r in body.reads if len(r.region)]
    if any(index.same_as(body.iter_vars[-1].var) for index in contiguous) and block.reduce[-1] % lanes == 0:
        _partial_sums(sch, block, spatial, reduced, several(block.reduce[-1], lanes), work)
    elif any(index.same_as(body.iter_vars[len(spatial) - 1].var) for index in contiguous):
        _columns(sch, block, spatial, reduced, lanes, work)
    elif work >= MIN_PARALLEL:
        sch.parallel(sch.fuse(*spatial))


def _partial_sums(
    sch: s_tir.Schedule, block: Block, spatial: list[LoopRV], reduced: list[LoopRV], lanes: int, work: int
) -> None:
    """Reduce the contiguous axis into one vector of partial results, and reduce that vector at the end."""
    _, lane = sch.split(reduced[-1], [None, lanes])
    partial = sch.rfactor(lane, len(spatial))
    task = sch.fuse(*sch.get_loops(block.rv)[: len(spatial)])
    sch.compute_at(partial, task, preserve_unit_loops=True)
    sch.set_scope(partial, 0, "local")
    if work >= MIN_PARALLEL:
        sch.parallel(task)
    inner = list(sch.get_loops(partial))[1:]
    # After the task loop: the lane, the kept axes again (extent 1 each), then the steps of the reduction.
    lane, steps = inner[0], inner[1 + len(spatial) :]
    sch.reorder(*steps, lane)
    sch.vectorize(lane)
    start = sch.decompose_reduction(partial, steps[0])
    sch.vectorize(sch.get_loops(start)[-1])


def _columns(
    sch: s_tir.Schedule, block: Block, spatial: list[LoopRV], reduced: list[LoopRV], lanes: int, work: int
) -> None:
    """Keep the contiguous axis: one vector of results at a time, over all steps of the reduction."""
    width = largest_divisor(block.spatial[-1], lanes)
    step, lane = sch.split(spatial[-1], [None, width])
    task = sch.fuse(*spatial[:-1], step)
    sch.reorder(task, *reduced, lane)
    if work >= MIN_PARALLEL:
        sch.parallel(task)
    if width > 1:
        sch.vectorize(lane)
    start = sch.decompose_reduction(block.rv, reduced[0])
    if width > 1:
        sch.vectorize(sch.get_loops(start)[-1])


def _contiguous(sch: s_tir.Schedule, block: Block, machine: CpuMachine) -> bool:
    """Whether the innermost axes that make full vectors are read in the order of the result, or not at all."""
    lanes = machine.lanes(dtype_of(sch, block.rv))
    axes, extent = 1, block.spatial[-1]
    while extent % lanes and axes < len(block.spatial):
        axes += 1
        extent *= block.spatial[-axes]
    if axes == 1:
        return True
    body = sch.get(block.rv)
    written = [part.min for part in body.writes[0].region][-axes:]
    return all(_runs(list(r.region)[-axes:], written, block.spatial[-axes:]) for r in body.reads)


def _runs(read: list[Range], written: list[Expr], extents: tuple[int, ...]) -> bool:
    """Whether an operand is read in the order of the result, or is one element for all of these axes.

    An operand that repeats along some axes only is neither: its repetition splits a vector.
    """
    count = min(len(read), len(written))
    pairs = list(
        zip(read[len(read) - count :], written[len(written) - count :], extents[len(extents) - count :], strict=True)
    )
    one = [isinstance(getattr(part.min, "value", None), int) for part, _, _ in pairs]
    if all(one):
        return True
    same = all(
        part.min.same_as(own) or (fixed and extent == 1) for (part, own, extent), fixed in zip(pairs, one, strict=True)
    )
    return same and (count == len(extents) or math.prod(extents[: len(extents) - count]) == 1)


def _depends_on_lane(sch: s_tir.Schedule, block: Block) -> bool:
    """Whether a condition in the block reads its innermost iterator."""
    body = sch.get(block.rv)
    lane = body.iter_vars[-1].var
    value = getattr(body.body, "value", None)
    return value is not None and any(
        str(getattr(getattr(part, "op", None), "name", "")).endswith("if_then_else")
        and any(inner.same_as(lane) for inner in parts(part.args[0]))
        for part in parts(value)
    )


def _repeats_bfloat16(sch: s_tir.Schedule, block: Block) -> bool:
    """Whether a vector would repeat one bfloat16, whose type TVM forgets when it makes its bits of it."""
    if dtype_of(sch, block.rv) != "bfloat16":
        return False
    body = sch.get(block.rv)
    last = body.iter_vars[-1].var
    places = ([part for extent in read.region for part in parts(extent.min)] for read in body.reads)
    return any(not any(isinstance(part, tirx.Var) and part.same_as(last) for part in place) for place in places)
