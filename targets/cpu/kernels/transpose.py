"""A matrix transposed by squares of vectors (`squares`), whole or into panels: loads and stores are full vectors.

The last squares along an axis overlap those before where its extent is no multiple of a vector; they write the same
numbers again.
"""

from __future__ import annotations

from collections.abc import Callable

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
    y = tirx.decl_buffer([_extent(n), _extent(m)], dtype, "y")
    return _by_squares(shape, lanes, dtype, y, lambda column, row: [column, tirx.Ramp(row, _extent(1), lanes)])


def fits_panels(shape: tuple[int, int], width: int, lanes: int, dtype: str) -> bool:
    """Whether panels of `width` columns of the transposed matrix are made of full squares, and of nothing else."""
    return possible(shape, lanes, dtype) and shape[0] % lanes == 0 and width % lanes == 0


def panels(shape: tuple[int, int], width: int, lanes: int, dtype: str) -> tirx.PrimFunc:
    """x[N, K] -> y[1, ceil(N / width), K, width], as a GEMM reads the transposed matrix; the last one zero padded."""
    n, k = shape
    count = round_up(n, width) // width
    y = tirx.decl_buffer([_extent(1), _extent(count), _extent(k), _extent(width)], dtype, "y")

    def place(column: Expr, row: Expr) -> list[Expr]:
        return [_extent(0), row // width, column, tirx.Ramp(row % width, _extent(1), lanes)]

    return _by_squares(shape, lanes, dtype, y, place, padded=count * width)


def _by_squares(
    shape: tuple[int, int],
    lanes: int,
    dtype: str,
    y: tirx.Buffer,
    place: Callable[[Expr, Expr], list[Expr]],
    padded: int = 0,
) -> tirx.PrimFunc:
    """Turn the squares of x[M, N]; `place` gives the indices in y of column `column`, rows `row` to `row + lanes`.

    Rows from M on to `padded` are zero.
    """
    m, n = shape
    x = tirx.decl_buffer([_extent(m), _extent(n)], dtype, "x")
    rows, columns = (round_up(extent, lanes) // lanes for extent in (max(m, padded), n))
    chunks = round_up(columns, SQUARES_PER_TASK) // SQUARES_PER_TASK
    task, inner = tirx.Var("task", "int64"), tirx.Var("square", "int64")
    square = task % chunks * SQUARES_PER_TASK + inner
    past = padded > m
    row = task // chunks * lanes if past else tirx.min(task // chunks * lanes, _extent(m - lanes))
    column = tirx.min(square * lanes, _extent(n - lanes))
    across = tirx.Ramp(column, _extent(1), lanes)
    loads: list[Expr] = [tirx.BufferLoad(x, [row + i, across]) for i in range(lanes)]
    body: tirx.Stmt = transposed(
        loads, dtype, lambda v: [tirx.BufferStore(y, v[j], place(column + j, row)) for j in range(lanes)]
    )
    if past:
        zeros = tirx.Broadcast(tirx.const(0, dtype), lanes)
        stores = [tirx.BufferStore(y, zeros, place(column + j, row)) for j in range(lanes)]
        body = tirx.IfThenElse(row < m, body, tirx.SeqStmt(stores))
    if columns % SQUARES_PER_TASK:
        body = tirx.IfThenElse(square < columns, body, None)
    body = tirx.For(inner, _extent(0), _extent(SQUARES_PER_TASK), tirx.ForKind.SERIAL, body)
    body = tirx.For(task, _extent(0), _extent(rows * chunks), tirx.ForKind.PARALLEL, body)
    root = s_tir.SBlockRealize([], True, s_tir.SBlock([], [], [], "root", body))
    return tirx.PrimFunc([x, y], root).with_attr({SCHEDULED: 1, "s_tir": True, "tirx.noalias": True})


def _extent(value: int) -> tirx.IntImm:
    return tvm.tirx.IntImm("int64", value)
