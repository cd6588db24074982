"""What every kernel without a rule of its own gets: inline what can be, parallel outer loops, vectors inside."""

from __future__ import annotations

import math
from typing import Any

from tvm import s_tir

from graphopt.targets.kernels.common import Block, blocks_of, dtype_of, largest_divisor
from graphopt.targets.machine import CpuMachine

MIN_PARALLEL = 1 << 14
"""Elements (or reduction steps) below which waking another core costs more than it saves."""


def schedule(sch: s_tir.Schedule, machine: CpuMachine) -> None:
    """Inline elementwise blocks forward, then schedule each block that is left on its own."""
    for block in blocks_of(sch)[:-1]:
        if block.reduce:
            continue
        try:
            sch.compute_inline(block.rv)
        except Exception:  # noqa: BLE001, S112  TVM raises ScheduleError for an output, or for an access it cannot follow
            continue
    for block in blocks_of(sch):
        if block.reduce:
            _reduction(sch, block)
        else:
            _elementwise(sch, block, machine)


def _elementwise(sch: s_tir.Schedule, block: Block, machine: CpuMachine) -> None:
    loops = list(sch.get_loops(block.rv))
    if not loops or len(loops) != len(block.spatial):
        return
    lanes = machine.lanes(dtype_of(sch, block.rv))
    *outer, inner = loops
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


def _reduction(sch: s_tir.Schedule, block: Block) -> None:
    loops = list(sch.get_loops(block.rv))
    if len(loops) != len(block.spatial) + len(block.reduce):
        return
    spatial: list[Any] = loops[: len(block.spatial)]
    if not spatial or math.prod(block.spatial) * math.prod(block.reduce) < MIN_PARALLEL:
        return
    kinds = [int(iterator.iter_type) for iterator in sch.get(block.rv).iter_vars]
    if kinds != sorted(kinds):  # a reduction axis stands before a spatial one
        return
    sch.parallel(sch.fuse(*spatial))
