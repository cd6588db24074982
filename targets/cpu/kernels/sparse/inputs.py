"""Matrix-vector products that skip the rows of weights whose input is zero.

    k of the inputs that are not zero -> a list; few of them?  then y[n] = sum over the list of x[k] * w[k, n]
                                                        else  the dense product

A product of one row is bound by reading its weights, which lie in panels with one line of vectors for each input: a
line that is skipped is not read. The list is made once, for all tasks; it costs a pass over x. Weights are finite, so
that zero times a weight is zero. EIE does so in hardware (S. Han et al., 2016, arXiv:1602.01528).
"""

from __future__ import annotations

import math

from tvm import ir, s_tir, tirx
from tvm.ir import Expr
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from graphopt.targets.common.kernels.anchored import Anchored, read
from graphopt.targets.common.kernels.blocks import Block, blocks_of, const
from graphopt.targets.common.kernels.guards import when
from graphopt.targets.cpu.kernels import gemm
from graphopt.targets.cpu.kernels.partials import STEPS
from graphopt.targets.cpu.machine import CpuMachine

NAME = "gemm_of_sparse_inputs"

FEW = 15 / 16
"""The share of inputs that are not zero from which on the dense loop, which reads ahead, is as fast."""

TOGETHER = 4
"""Inputs of the list that are taken in one step."""


def schedule(sch: s_tir.Schedule, anchor: Block, machine: CpuMachine) -> tirx.PrimFunc:
    """The function that makes the list, then takes one of two loops."""
    original = sch.mod["main"]
    dense = gemm.schedule(sch, anchor, machine)
    again = s_tir.Schedule(original)
    function = read(again, next(block for block in blocks_of(again) if block.name == anchor.name))
    if function.total_extents[0] != 1 or function.total_extents[2] != 1 or not isinstance(function.value, tirx.Mul):
        raise ValueError("it is no product of one row")
    return dense.with_body(_body(function, dense.body, anchor.reduce[0], machine))


def _body(function: Anchored, dense: tirx.Stmt, depth: int, machine: CpuMachine) -> tirx.Stmt:
    left, panels = function.value.a, function.value.b
    if not isinstance(left, ir.TensorLoad) or not isinstance(panels, ir.TensorLoad):
        raise ValueError("its operands are computed on the way")
    x, weights = left.source, panels.source
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("main")
            places = T.alloc_buffer((depth,), "int32", scope="global")
            count = T.alloc_buffer((1,), "int32", scope="global")
            T.buffer_store(count, const(0, "int32"), [0])
            with T.serial(0, depth) as k:
                T.buffer_store(places, k.astype("int32"), [count[0]])
                zero = x[0, 0, k] == const(0, function.dtype)
                T.buffer_store(count, count[0] + tirx.Select(zero, const(0, "int32"), const(1, "int32")), [0])
            with T.If(count[0] < math.ceil(depth * FEW)):
                with T.Then():
                    _listed(function, x, weights, places, count[0], machine)
                with T.Else():
                    T.evaluate(0)
        made = builder.get().body
    return _with_dense(made, dense)


def _listed(
    function: Anchored, x: tirx.Buffer, weights: tirx.Buffer, places: tirx.Buffer, count: Expr, machine: CpuMachine
) -> None:
    """The product over the list: a task for each panel; long sums in parts, as in `partials.py`."""
    _, panels, _, width = function.total_extents
    lanes = machine.lanes(function.dtype)
    with T.parallel(0, panels) as panel:
        totals, sums = (T.alloc_buffer((width,), function.dtype, scope="local") for _ in range(2))
        _zero(totals, width, lanes)
        with T.serial(0, tirx.floordiv(count + STEPS - 1, STEPS)) as part:
            begin = T.bind(part * STEPS)
            end = T.bind(tirx.min(begin + STEPS, count))
            steps = T.bind(tirx.floordiv(end - begin, TOGETHER))
            _zero(sums, width, lanes)
            with T.serial(0, steps) as step:
                for inner in range(TOGETHER):
                    _add(sums, x, weights, panel, places[begin + step * TOGETHER + inner], width, lanes)
            with T.serial(begin + steps * TOGETHER, end) as at:
                _add(sums, x, weights, panel, places[at], width, lanes)
            for first in range(0, width, lanes):
                with T.vectorized(0, lanes) as lane:
                    T.buffer_store(totals, totals[first + lane] + sums[first + lane], [first + lane])
        n = function.extents[-1]
        start = panel * width
        leading = [tirx.IntImm(function.index, 0)] * (len(function.extents) - 1)
        for first in range(0, width, lanes):
            at = start + first

            def store(lane: Expr, first: int = first, at: Expr = at) -> None:
                T.buffer_store(*function.store([*leading, at + lane], totals[first + lane]))

            if n % width == 0:
                with T.vectorized(0, lanes) as lane:
                    store(lane)
                continue
            with T.If(at + lanes <= n):
                with T.Then(), T.vectorized(0, lanes) as lane:
                    store(lane)
                with T.Else(), T.serial(0, lanes) as lane, when(at + lane < n):
                    store(lane)


def _zero(buffer: tirx.Buffer, width: int, lanes: int) -> None:
    for first in range(0, width, lanes):
        with T.vectorized(0, lanes) as lane:
            T.buffer_store(buffer, const(0, str(buffer.dtype)), [first + lane])


def _add(
    sums: tirx.Buffer, x: tirx.Buffer, weights: tirx.Buffer, panel: Expr, place: Expr, width: int, lanes: int
) -> None:
    k = T.bind(place.astype(str(panel.ty.dtype)))
    number = T.bind(x[0, 0, k])
    for first in range(0, width, lanes):
        with T.vectorized(0, lanes) as lane:
            T.buffer_store(sums, sums[first + lane] + number * weights[0, panel, k, first + lane], [first + lane])


def _with_dense(statement: tirx.Stmt, dense: tirx.Stmt) -> tirx.Stmt:
    """The statement with the dense body as its else case."""
    if isinstance(statement, tirx.SeqStmt):
        return tirx.SeqStmt([_with_dense(part, dense) for part in statement])
    if isinstance(statement, s_tir.SBlockRealize):
        block = statement.block
        parts = block.iter_vars, block.reads, block.writes, block.name_hint, _with_dense(block.body, dense), block.init
        rebuilt = s_tir.SBlock(*parts, block.alloc_buffers, block.match_buffers, block.annotations)
        return s_tir.SBlockRealize(statement.iter_values, statement.predicate, rebuilt)
    if isinstance(statement, tirx.IfThenElse) and statement.else_case is not None:
        return tirx.IfThenElse(statement.condition, statement.then_case, dense)
    return statement
