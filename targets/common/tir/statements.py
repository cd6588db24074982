"""Changes the expressions of statements inside any loops and blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import s_tir, tirx
from tvm.ir import Expr


def changed(
    statement: tirx.Stmt,
    change: Callable[[Expr], Expr],
    stored: Callable[[tirx.BufferStore, bool], tirx.Stmt] | None = None,
) -> tirx.Stmt:
    """The statement with every value that it stores, binds, evaluates or decides by changed; itself if none is.

    Bounds of loops and indices of stores stay, as do kinds of statements that hold no such value.

    Args:
        stored: changes stores instead; its flag says whether they are the steps of a reduction, whose names stay.
    """
    return _Changer(change, stored).statement(statement, False)


class _Changer:
    def __init__(
        self, change: Callable[[Expr], Expr], stored: Callable[[tirx.BufferStore, bool], tirx.Stmt] | None
    ) -> None:
        self.change, self.stored = change, stored

    def statement(self, old: tirx.Stmt, reduces: bool) -> tirx.Stmt:
        new = self._new(old, reduces)
        return old if new is None else new

    def _new(self, old: tirx.Stmt, reduces: bool) -> tirx.Stmt | None:
        """The changed statement; None where nothing changes."""
        if isinstance(old, tirx.SeqStmt):
            parts = [self.statement(part, reduces) for part in old]
            return None if _same(parts, old) else tirx.SeqStmt(parts)
        if isinstance(old, s_tir.SBlockRealize):
            block = self._block(old.block)
            return None if block is old.block else s_tir.SBlockRealize(old.iter_values, old.predicate, block)
        if isinstance(old, tirx.BufferStore):
            if self.stored is not None:
                return self.stored(old, reduces)
            value = self.change(old.value)
            same = value.same_as(old.value)
            return None if same else tirx.BufferStore(old.buffer, value, list(old.indices))
        if reduces and self.stored is not None and isinstance(old, tirx.Bind):
            return None
        if isinstance(old, tirx.Bind | tirx.Evaluate):
            value = self.change(old.value)
            if value.same_as(old.value):
                return None
            return tirx.Bind(old.var, value) if isinstance(old, tirx.Bind) else tirx.Evaluate(value)
        return self._around(old, reduces)

    def _around(self, old: tirx.Stmt, reduces: bool) -> tirx.Stmt | None:
        """The changed statement, for kinds that hold other statements."""
        if isinstance(old, tirx.IfThenElse):
            condition, then = self.change(old.condition), self.statement(old.then_case, reduces)
            otherwise = None if old.else_case is None else self.statement(old.else_case, reduces)
            before = old.condition, old.then_case, *(() if otherwise is None else (old.else_case,))
            same = _same([condition, then, *(() if otherwise is None else (otherwise,))], before)
            return None if same else tirx.IfThenElse(condition, then, otherwise)
        if not isinstance(old, tirx.For | tirx.While | tirx.AttrStmt):
            return None
        body = self.statement(old.body, reduces)
        if isinstance(old, tirx.While):
            condition = self.change(old.condition)
            return None if _same([condition, body], [old.condition, old.body]) else tirx.While(condition, body)
        if body.same_as(old.body):
            return None
        if isinstance(old, tirx.AttrStmt):
            return tirx.AttrStmt(old.node, old.attr_key, old.value, body)
        bounds = old.loop_var, old.min, old.extent, old.kind
        return tirx.For(*bounds, body, old.thread_binding, old.annotations, old.step)

    def _block(self, old: s_tir.SBlock) -> s_tir.SBlock:
        start = None if old.init is None else self.statement(old.init, False)
        body = self.statement(old.body, old.init is not None)
        if body.same_as(old.body) and (start is None or start.same_as(old.init)):
            return old
        access = old.iter_vars, old.reads, old.writes
        return s_tir.SBlock(*access, old.name_hint, body, start, old.alloc_buffers, old.match_buffers, old.annotations)


def _same(new: Sequence[Expr | tirx.Stmt], old: Sequence[Expr | tirx.Stmt] | tirx.SeqStmt) -> bool:
    return all(a.same_as(b) for a, b in zip(new, old, strict=True))
