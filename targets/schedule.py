"""Gives every PrimFunc a schedule: the rule that its compute definition names, or the generic one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import s_tir

from graphopt.targets.kernels import conv_direct, conv_winograd, depthwise, gemm, generic, rowwise
from graphopt.targets.kernels.common import Block, blocks_of
from graphopt.targets.machine import CpuMachine

Rule = Callable[[s_tir.Schedule, Block, CpuMachine], None]

RULES: dict[str, Rule] = {
    conv_direct.NAME: conv_direct.schedule,
    conv_winograd.INPUT: conv_winograd.schedule_input,
    conv_winograd.PRODUCT: conv_winograd.schedule_product,
    conv_winograd.OUTPUT: conv_winograd.schedule_output,
    depthwise.NAME: depthwise.schedule,
    gemm.NAME: gemm.schedule,
    rowwise.NAME: rowwise.schedule,
}


def apply(function: Any, machine: CpuMachine) -> Any:
    """The scheduled PrimFunc; its name and signature stay."""
    sch = s_tir.Schedule(function)
    anchor = next((block for block in blocks_of(sch) if block.rule), None)
    if anchor is None:
        generic.schedule(sch, machine)
    else:
        RULES[anchor.rule](sch, anchor, machine)
    return sch.mod["main"]
