"""The schedule of kernels without a rule of their own: a thread per element, a block per long sum."""

from __future__ import annotations

import math

from tvm import s_tir, tirx

from graphopt.targets.common.kernels.blocks import Block, blocks_of
from graphopt.targets.common.tir import ieee
from graphopt.targets.gpu.devices import GpuSpec
from graphopt.targets.gpu.loops import bound

THREADS = 256

SHORT = 64
"""Steps of a sum that one thread does alone."""


def schedule(sch: s_tir.Schedule, device: GpuSpec) -> None:
    """Inline elementwise blocks forward, then bind each block that is left on its own.

    Raises:
        ValueError: a block has loops that are not its iterators.
    """
    for block in blocks_of(sch)[:-1]:
        if block.reduce or ieee.holds_names(sch.get(block.rv)):
            continue
        try:
            sch.compute_inline(block.rv)
        except s_tir.ScheduleError:  # an output, or an access it cannot follow
            continue
    for block in blocks_of(sch):
        loops = sch.get_loops(block.rv)
        if len(loops) != len(block.spatial) + len(block.reduce):
            raise ValueError("its loops are written by hand")
        kinds = [int(iterator.iter_type) for iterator in sch.get(block.rv).iter_vars]
        if not loops:
            loops = [sch.add_unit_loop(block.rv)]
        elif kinds != sorted(kinds):
            raise ValueError("a reduced axis stands before one that is kept")
        elements = math.prod(block.spatial)
        if block.reduce and not _alone(block, elements, device) and _known(sch.get(block.rv)):
            _block_per_sum(sch, block, loops, device)
            continue
        _elements(sch, loops[: max(len(block.spatial), 1)] if block.spatial or not block.reduce else [], block, device)


def _alone(block: Block, elements: int, device: GpuSpec) -> bool:
    """Whether a thread sums by itself: a short sum, or enough of them to fill the device."""
    steps = math.prod(block.reduce)
    return steps <= SHORT or elements >= device.multiprocessors * device.threads_per_multiprocessor


def _known(block: s_tir.SBlock) -> bool:
    """Whether TVM can reduce across threads: it knows maxima from the lowest finite number on, not from -inf."""
    stores = list(block.init) if isinstance(block.init, tirx.SeqStmt) else [block.init]
    values = [getattr(part, "value", None) for part in stores]
    return not any(isinstance(value, tirx.FloatImm) and math.isinf(float(value.value)) for value in values)


def _elements(sch: s_tir.Schedule, spatial: list[s_tir.schedule.LoopRV], block: Block, device: GpuSpec) -> None:
    """Neighbouring threads take neighbouring elements."""
    if not spatial:  # one sum over everything
        spatial = [sch.add_unit_loop(sch.get_loops(block.rv)[0])]
    fused = sch.fuse(*spatial)
    threads = min(THREADS, device.threads_per_block)
    outer, inner = sch.split(fused, [None, min(threads, max(1, math.prod(block.spatial)))])
    sch.bind(outer, "blockIdx.x")
    sch.bind(inner, "threadIdx.x")
    if block.reduce:
        sch.decompose_reduction(block.rv, sch.get_loops(block.rv)[2])


def _block_per_sum(sch: s_tir.Schedule, block: Block, loops: list[s_tir.schedule.LoopRV], device: GpuSpec) -> None:
    """A block per sum: its threads take turns, and add up their partial sums at the end."""
    spatial, reduced = loops[: len(block.spatial)], loops[len(block.spatial) :]
    if not spatial:
        spatial = [sch.add_unit_loop(reduced[0])]
    task, steps = sch.fuse(*spatial), sch.fuse(*reduced)
    _, thread = sch.split(steps, [None, threads_for(math.prod(block.reduce), device)])
    sch.bind(task, "blockIdx.x")
    sch.bind(thread, "threadIdx.x")


def threads_for(steps: int, device: GpuSpec) -> int:
    """Threads of a block that share `steps`: a power of two, some four steps each."""
    wanted = 1 << max(5, math.ceil(math.log2(max(steps / 4, 1))))
    return min(wanted, THREADS, device.threads_per_block)


def by_hand(function: tirx.PrimFunc, device: GpuSpec) -> tirx.PrimFunc:
    """The function with its handwritten parallel loops bound to threads; one thread does what stands outside."""
    return function.with_body(bound(function.body, min(THREADS, device.threads_per_block)))
