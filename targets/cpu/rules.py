"""Gives every PrimFunc a schedule: the rule that its compute definition names, or the generic one."""

from __future__ import annotations

from collections.abc import Callable

from tvm import s_tir, tirx

from graphopt.targets.common.kernels.blocks import SCHEDULED, Block, blocks_of
from graphopt.targets.cpu.kernels import extremes, gemm, generic, lrn, rowwise
from graphopt.targets.cpu.kernels.conv import depthwise, direct, fft, winograd, winograd_fused
from graphopt.targets.cpu.kernels.integer import conv
from graphopt.targets.cpu.kernels.integer import gemm as integer_gemm
from graphopt.targets.cpu.kernels.sparse import conv as sparse_conv
from graphopt.targets.cpu.kernels.sparse import inputs, outputs, rows
from graphopt.targets.cpu.kernels.training import channel_sums, weight_gradient, weights
from graphopt.targets.cpu.machine import CpuMachine

Rule = Callable[[s_tir.Schedule, Block, CpuMachine], s_tir.Schedule | tirx.PrimFunc | None]
"""Changes the schedule in place; a schedule or function that it returns replaces it."""

RULES: dict[str, Rule] = {
    direct.NAME: direct.schedule,
    fft.OUTPUT: fft.schedule_output,
    winograd.INPUT: winograd.schedule_input,
    winograd.PRODUCT: winograd.schedule_product,
    winograd.OUTPUT: winograd.schedule_output,
    winograd_fused.NAME: winograd_fused.schedule,
    depthwise.NAME: depthwise.schedule,
    extremes.NAME: extremes.schedule,
    extremes.BOTH: extremes.schedule_ends,
    gemm.NAME: gemm.schedule,
    inputs.NAME: inputs.schedule,
    channel_sums.BLOCKED: channel_sums.schedule_blocked,
    conv.NAME: conv.schedule,
    integer_gemm.NAME: integer_gemm.schedule,
    lrn.NAME: lrn.schedule,
    outputs.NAME: outputs.schedule,
    sparse_conv.NAME: sparse_conv.schedule,
    rows.NAME: rows.schedule,
    rowwise.NAME: rowwise.schedule,
    weight_gradient.NAME: weight_gradient.schedule,
    weight_gradient.DEPTHWISE: weight_gradient.schedule_depthwise,
    weights.WINOGRAD: weights.schedule_winograd,
}


def apply(function: tirx.PrimFunc, machine: CpuMachine) -> tuple[tirx.PrimFunc, str]:
    """The scheduled PrimFunc, its name and signature unchanged, and a sentence if its rule did not fit it.

    Every schedule computes the same function, so a rule that fails for a shape costs speed and nothing else.
    """
    if function.attrs is not None and SCHEDULED in function.attrs:
        return function, ""
    sch = s_tir.Schedule(function)
    try:
        blocks = blocks_of(sch)
    except s_tir.ScheduleError:  # TVM wrote its loops by hand (scatter): nothing to schedule
        return function, "no schedule rule applies; the kernel runs on one thread"
    anchor = next((block for block in blocks if block.rule), None)
    note = ""
    if anchor is not None:
        try:
            done = RULES[anchor.rule](sch, anchor, machine)
            return done if isinstance(done, tirx.PrimFunc) else (done or sch).mod["main"], note
        except (s_tir.ScheduleError, ValueError, TypeError) as error:
            note = (
                f"the schedule rule {anchor.rule} does not fit its shape ({str(error).strip().splitlines()[-1][:120]})"
            )
    sch = s_tir.Schedule(function)
    try:
        generic.schedule(sch, machine)
    except s_tir.ScheduleError:
        return function, note or "no schedule rule fits; the kernel runs on one thread"
    return sch.mod["main"], note
