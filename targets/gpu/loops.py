"""Handwritten loops as threads run them: serial ones, and parallel ones distributed over blocks."""

from __future__ import annotations

from collections.abc import Callable

from tvm import s_tir, tirx


def serial(statement: tirx.Stmt) -> tirx.Stmt:
    """The statement with serial loops only, as one thread runs them."""
    if isinstance(statement, tirx.For):
        bounds = statement.loop_var, statement.min, statement.extent, tirx.ForKind.SERIAL
        return tirx.For(*bounds, serial(statement.body), None, None, statement.step)
    return _inside(statement, serial)


def bound(statement: tirx.Stmt, threads: int) -> tirx.Stmt:
    """The statement with outermost parallel loops distributed over blocks of `threads`, all else in one thread."""
    if isinstance(statement, tirx.SeqStmt | s_tir.SBlockRealize):
        return _inside(statement, lambda part: bound(part, threads))
    if isinstance(statement, tirx.AllocBuffer | tirx.DeclBuffer):
        return statement
    parallel = isinstance(statement, tirx.For) and statement.kind == tirx.ForKind.PARALLEL
    if not parallel or not isinstance(statement.extent, tirx.IntImm):
        return _launched(serial(statement), 1, 1)
    extent, body = int(statement.extent), serial(statement.body)
    width = min(threads, extent)
    block, thread = tirx.Var("block", "int32"), tirx.Var("thread", "int32")
    at = block * width + thread
    if extent % width:
        body = tirx.IfThenElse(at < extent, body, None)
    value = at.astype(str(statement.loop_var.ty.dtype)) + statement.min
    return _launched(
        tirx.SeqStmt([tirx.Bind(statement.loop_var, value), body]), -(-extent // width), width, block, thread
    )


def _launched(
    body: tirx.Stmt, blocks: int, threads: int, block: tirx.Var | None = None, thread: tirx.Var | None = None
) -> tirx.Stmt:
    for name, extent, variable in (("threadIdx.x", threads, thread), ("blockIdx.x", blocks, block)):
        variable = tirx.Var(name[0] + "x", "int32") if variable is None else variable
        iterator = tirx.IterVar(None, variable, tirx.IterVar.ThreadIndex, name)
        body = tirx.For(variable, 0, extent, tirx.ForKind.THREAD_BINDING, body, iterator)
    return body


def _inside(statement: tirx.Stmt, change: Callable[[tirx.Stmt], tirx.Stmt]) -> tirx.Stmt:
    """The statement with its parts changed."""
    if isinstance(statement, tirx.SeqStmt):
        return tirx.SeqStmt([change(part) for part in statement])
    if isinstance(statement, s_tir.SBlockRealize):
        block = statement.block
        parts = block.iter_vars, block.reads, block.writes, block.name_hint, change(block.body), block.init
        rebuilt = s_tir.SBlock(*parts, block.alloc_buffers, block.match_buffers, block.annotations)
        return s_tir.SBlockRealize(statement.iter_values, statement.predicate, rebuilt)
    if isinstance(statement, tirx.For):
        bounds = statement.loop_var, statement.min, statement.extent, statement.kind, change(statement.body)
        return tirx.For(*bounds, statement.thread_binding, statement.annotations, statement.step)
    if isinstance(statement, tirx.IfThenElse):
        otherwise = None if statement.else_case is None else change(statement.else_case)
        return tirx.IfThenElse(statement.condition, change(statement.then_case), otherwise)
    if isinstance(statement, tirx.AttrStmt):
        return tirx.AttrStmt(statement.node, statement.attr_key, statement.value, change(statement.body))
    return statement
