"""Binds every PrimFunc to blocks and threads: by the schedule rule that its definition names, or a generic one."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import s_tir, tirx

from graphopt.cost.workload import KernelPlan
from graphopt.targets.common.kernels.blocks import Block, blocks_of
from graphopt.targets.gpu import plans
from graphopt.targets.gpu.code import SYNCHRONIZED
from graphopt.targets.gpu.devices import GpuSpec
from graphopt.targets.gpu.kernels import generic, window, winograd
from graphopt.targets.gpu.kernels import reductions as sums
from graphopt.targets.gpu.kernels.gemm import product, sparse, templates
from graphopt.targets.gpu.kernels.gemm.axes import blocked


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A PrimFunc with every loop in a kernel, its plan, and a note if its schedule rule did not fit it."""

    function: tirx.PrimFunc
    plan: KernelPlan
    note: str = ""


READERS = {product.NAME: product.read, sparse.NAME: sparse.read}
"""The rules whose functions have the normal form of a GEMM, and what reads it."""


def _product(sch: s_tir.Schedule, anchor: Block, device: GpuSpec) -> Scheduled:
    layout = product.layout(sch, anchor)
    chosen = templates.best(READERS[str(anchor.rule)](sch, anchor), device)
    return Scheduled(chosen.emit(), KernelPlan("product", chosen.tile, chosen.seconds, layout, chosen.units))


def _window(sch: s_tir.Schedule, anchor: Block, device: GpuSpec) -> Scheduled:
    return Scheduled(window.emit(sch, anchor, device), KernelPlan("window", layout=blocked(anchor.spatial[-1])))


def _winograd(sch: s_tir.Schedule, anchor: Block, device: GpuSpec) -> Scheduled:
    layout = blocked(winograd.lanes(sch))
    return Scheduled(winograd.emit(sch, anchor, device), KernelPlan("winograd transform", layout=layout))


RULES = {**dict.fromkeys(READERS, _product), window.NAME: _window, winograd.NAME: _winograd}


def apply(function: tirx.PrimFunc, device: GpuSpec) -> Scheduled:
    """Bind a PrimFunc to blocks and threads; its signature stays."""
    note = ""
    function = _without_offsets(function)
    if SYNCHRONIZED in function.attrs:  # a kernel template emitted it, ready to run
        return Scheduled(function, plans.of(function))
    try:
        sch = s_tir.Schedule(function)
        anchor = next((block for block in blocks_of(sch) if block.rule in RULES), None)
    except s_tir.ScheduleError:  # TVM wrote its loops by hand
        anchor = None
    if anchor is not None:
        try:
            return RULES[anchor.rule](sch, anchor, device)
        except (s_tir.ScheduleError, ValueError, TypeError) as error:
            reason = (str(error).strip().splitlines() or [""])[-1][:120]
            note = f"the schedule rule {anchor.rule} does not fit its shape ({reason})"
    try:
        sch = s_tir.Schedule(function)
        reductions = [block for block in blocks_of(sch) if block.reduce]
        if len(reductions) == 1:
            emitted, config, seconds = sums.emit(sch, reductions[0], device)
            return Scheduled(emitted, KernelPlan("sums", str(config), seconds), note)
    except (s_tir.ScheduleError, ValueError):
        pass
    try:
        sch = s_tir.Schedule(function)
        generic.schedule(sch, device)
        return Scheduled(sch.mod["main"], KernelPlan("elements"), note)
    except (s_tir.ScheduleError, ValueError):
        return Scheduled(generic.by_hand(function, device), KernelPlan("loops"), note)


def choices(function: tirx.PrimFunc, device: GpuSpec, count: int | None) -> list[templates.KernelCandidate]:
    """The `templates.choices` for the GEMM of a PrimFunc; none where it computes no GEMM."""
    try:
        sch = s_tir.Schedule(_without_offsets(function))
        anchor = next((block for block in blocks_of(sch) if block.rule in READERS), None)
        return [] if anchor is None else templates.choices(READERS[str(anchor.rule)](sch, anchor), device, count)
    except (s_tir.ScheduleError, ValueError, TypeError):  # nothing that `apply` could emit
        return []


def _without_offsets(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """The function with tensors that start where their memory does: TVM lets some start anywhere."""
    for parameter in function.params:
        if not isinstance(parameter.elem_offset, tirx.IntImm):
            plain = tirx.decl_buffer(parameter.shape, parameter.dtype, parameter.name)
            function = function.specialize({parameter: plain})
    return function
