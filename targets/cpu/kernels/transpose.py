"""A matrix transposed by squares of vectors (`squares`): every load and store is a full vector.

The last squares along an axis overlap those before where its extent is no multiple of a vector; they write the same
numbers again.
"""

from __future__ import annotations

import tvm
from tvm import s_tir, tirx
from tvm.ir import Expr

from graphopt.targets.common.kernels.blocks import SCHEDULED, round_up
from graphopt.targets.cpu.kernels.squares import SQUARES_PER_TASK, transposed


def possible(shape: tuple[int, ...], lanes: int, dtype: str) -> bool:
    """Whether the matrix has full squares."""
    return dtype == "float32" and lanes in (4, 8, 16) and min(shape) >= lanes


def matrix(shape: tuple[int, int], lanes: int, dtype: str) -> tirx.PrimFunc:
    """x[M, N] -> y[N, M]."""
    m, n = shape
    x = tirx.decl_buffer([_extent(m), _extent(n)], dtype, "x")
    y = tirx.decl_buffer([_extent(n), _extent(m)], dtype, "y")
    rows, columns = (round_up(extent, lanes) // lanes for extent in shape)
    chunks = round_up(columns, SQUARES_PER_TASK) // SQUARES_PER_TASK
    task, inner = tirx.Var("task", "int64"), tirx.Var("square", "int64")
    square = task % chunks * SQUARES_PER_TASK + inner
    row = tirx.min(task // chunks * lanes, _extent(m - lanes))
    column = tirx.min(square * lanes, _extent(n - lanes))

    def run(start: Expr) -> tirx.Ramp:
        return tirx.Ramp(start, _extent(1), lanes)

    loads: list[Expr] = [tirx.BufferLoad(x, [row + i, run(column)]) for i in range(lanes)]
    body: tirx.Stmt = transposed(
        loads, dtype, lambda v: [tirx.BufferStore(y, v[j], [column + j, run(row)]) for j in range(lanes)]
    )
    if columns % SQUARES_PER_TASK:
        body = tirx.IfThenElse(square < columns, body, None)
    body = tirx.For(inner, _extent(0), _extent(SQUARES_PER_TASK), tirx.ForKind.SERIAL, body)
    body = tirx.For(task, _extent(0), _extent(rows * chunks), tirx.ForKind.PARALLEL, body)
    root = s_tir.SBlockRealize([], True, s_tir.SBlock([], [], [], "root", body))
    return tirx.PrimFunc([x, y], root).with_attr({SCHEDULED: 1, "s_tir": True, "tirx.noalias": True})


def _extent(value: int) -> tirx.IntImm:
    return tvm.tirx.IntImm("int64", value)
