"""Rows become panels: x[M, K] -> p[ceil(M / rows), K, width], so that the rows of a register tile stand side by side.

Squares of b rows x b columns are transposed in registers, as `squares.py` does. Rows behind the last of a tile belong
to the next one, and nobody reads them there; behind the last of x they repeat it.
"""

from __future__ import annotations

import math

import tvm
from tvm import s_tir, tirx
from tvm.ir import Expr

from graphopt.targets.common.kernels.blocks import SCHEDULED, round_up
from graphopt.targets.cpu.kernels.squares import transposed

SQUARES_PER_TASK = 16


def shape(m: int, k: int, rows: int, b: int) -> tuple[int, int, int]:
    """The extents of the panels of x[m, k] with tiles of `rows`, in full vectors of b."""
    return math.ceil(m / rows), k, round_up(rows, b)


def to_panels(m: int, k: int, rows: int, b: int, dtype: str) -> tirx.PrimFunc:
    """The function of x[m, k] and its panels; `rows` of the lanes of a panel are used."""
    tiles, _, width = shape(m, k, rows, b)
    x = tirx.decl_buffer([_int(m), _int(k)], dtype, "x")
    panels = tirx.decl_buffer([_int(tiles), _int(k), _int(width)], dtype, "panels")
    squares, rest, vectors = k // b, k % b, width // b
    tasks = math.ceil(max(squares, 1) / SQUARES_PER_TASK)
    task, inner = tirx.Var("task", "int64"), tirx.Var("square", "int64")
    part = task % tasks
    tile, vector = task // tasks // vectors, task // tasks % vectors
    column = (part * SQUARES_PER_TASK + inner) * b
    beyond = (tiles - 1) * rows + width > m

    def row(i: int) -> Expr:
        at = tile * rows + vector * b + i
        return tirx.min(at, _int(m - 1)) if beyond else at

    def lanes(at: Expr) -> list[Expr]:
        return [tile, at, tirx.Ramp(vector * b, _int(1), b)]

    statements: list[tirx.Stmt] = []
    if squares:
        loads: list[Expr] = [tirx.BufferLoad(x, [row(i), tirx.Ramp(column, _int(1), b)]) for i in range(b)]
        body: tirx.Stmt = transposed(
            loads, dtype, lambda v: [tirx.BufferStore(panels, v[j], lanes(column + j)) for j in range(b)]
        )
        if squares % SQUARES_PER_TASK and squares > SQUARES_PER_TASK:
            body = tirx.IfThenElse(part * SQUARES_PER_TASK + inner < squares, body, None)
        statements.append(tirx.For(inner, _int(0), _int(min(SQUARES_PER_TASK, squares)), tirx.ForKind.SERIAL, body))
    if rest:
        at = tirx.Var("column", "int64")
        copies = [tirx.BufferStore(panels, x[row(i), at], [tile, at, vector * b + i]) for i in range(b)]
        tail = tirx.For(at, _int(squares * b), _int(rest), tirx.ForKind.SERIAL, tirx.SeqStmt(copies))
        statements.append(tirx.IfThenElse(part == tasks - 1, tail, None))
    body = statements[0] if len(statements) == 1 else tirx.SeqStmt(statements)
    body = tirx.For(task, _int(0), _int(tiles * vectors * tasks), tirx.ForKind.PARALLEL, body)
    root = s_tir.SBlockRealize([], True, s_tir.SBlock([], [], [], "root", body))
    return tirx.PrimFunc([x, panels], root).with_attr({SCHEDULED: 1, "s_tir": True, "tirx.noalias": True})


def _int(value: int) -> tirx.IntImm:
    return tvm.tirx.IntImm("int64", value)
