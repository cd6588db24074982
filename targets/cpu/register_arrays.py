"""Memory in LLVM: small arrays of a kernel are on the stack, operands have the alignment of numpy's arrays.

    acc = TVMBackendAllocWorkspace(1792)    ->    acc = alloca(1792)
    storage_alignment(x) = 64               ->    storage_alignment(x) = 16

TVM takes memory of 1 KiB and more from a pool at run time. LLVM cannot tell such memory from a kernel's operands, so
one instruction in the loop that may touch memory, a prefetch, makes it write all sums back in every iteration; on the
stack LLVM turns register tiles into registers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import tvm
from tvm import tirx
from tvm.ir.transform import Pass, PassContext
from tvm.tirx import compilation_pipeline

from graphopt.targets.common.tir import ieee
from graphopt.targets.common.tir.rising import rising
from graphopt.targets.cpu.kernels import partials

PIPELINE = "graphopt"
"""Name of TVM's default pipeline followed by ours, for `tvm.compile`."""

LARGEST = 8192
"""Bytes. Threads have stacks of megabytes, and a kernel has few arrays."""

OPERAND_ALIGNMENT = 16
"""Bytes that an operand's address is known to be a multiple of: numpy's arrays are, which kernels then read in place.
Unaligned vector loads are as fast where the address is in fact aligned."""

KEEP = "disable_lower_builtin"
"""Annotation by which TVM leaves an allocation to LLVM."""


def register() -> None:
    """Register PIPELINE with TVM."""
    ieee.register()
    compilation_pipeline.register_tir_pipeline(PIPELINE, _pipeline)


def _pipeline() -> tuple[Pass, Callable[[], Pass], Callable[[], Pass]]:
    default, host, device = compilation_pipeline.get_tir_pipeline("s_tir")
    kept = tvm.ir.transform.Sequential([rising(), default, _keep_on_stack()])
    return kept, lambda: tvm.ir.transform.Sequential([host(), ieee.reveal(ieee.llvm_fence, ieee.llvm_wide)]), device


def _keep_on_stack() -> Pass:
    def transform(function: tirx.PrimFunc, _module: tvm.IRModule, _context: PassContext) -> tirx.PrimFunc:
        return function.with_body(_kept(function.body))

    return tirx.transform.prim_func_pass(transform, opt_level=0)


def _kept(statement: tirx.Stmt) -> tirx.Stmt:
    if isinstance(statement, tirx.AllocBuffer):
        buffer = statement.buffer
        bits = tvm.DataType(str(buffer.dtype)).bits * tvm.DataType(str(buffer.dtype)).lanes
        extents = [int(extent) for extent in buffer.shape if isinstance(extent, tirx.IntImm)]
        if len(extents) < len(buffer.shape) or math.prod(extents) * bits > LARGEST * 8:
            return statement
        return tirx.AllocBuffer(buffer, {**dict(statement.annotations or {}), KEEP: tirx.const(1, "bool")})
    if isinstance(statement, tirx.SeqStmt):
        return tirx.SeqStmt([_kept(part) for part in statement])
    if isinstance(statement, tirx.For) and partials.MARK in statement.annotations:
        return _kept(partials.cut(statement))
    if isinstance(statement, tirx.For):
        bounds = (statement.loop_var, statement.min, statement.extent, statement.kind)
        body = _kept(statement.body)
        return tirx.For(*bounds, body, statement.thread_binding, statement.annotations, statement.step)
    if isinstance(statement, tirx.AttrStmt) and statement.attr_key == "pragma_scope":
        return _kept(statement.body)  # of TVM's scatters; its code generator does not know it and warns
    if isinstance(statement, tirx.AttrStmt):
        value = statement.value
        if statement.attr_key == "storage_alignment":  # of an operand; TVM would have the 64 bytes of its own tensors
            value = tirx.IntImm("int32", OPERAND_ALIGNMENT)
        return tirx.AttrStmt(statement.node, statement.attr_key, value, _kept(statement.body))
    if isinstance(statement, tirx.IfThenElse):
        otherwise = None if statement.else_case is None else _kept(statement.else_case)
        return tirx.IfThenElse(statement.condition, _kept(statement.then_case), otherwise)
    return statement
