"""Statements under a condition: where a tile reaches beyond what there is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tvm import tirx
from tvm.ir import Expr
from tvm.script.ir_builder import tirx as T


@contextmanager
def when(condition: Expr | tirx.expr.EqualOp | None) -> Iterator[None]:
    """Statements under a condition, or under none."""
    if condition is None:
        yield
        return
    with T.If(condition), T.Then():
        yield


def inside(*guards: tuple[Expr, int, int]) -> Expr | None:
    """The condition that places exist: each is (index, size, tile), and is checked unless the tile divides the size.

    None where nothing is checked.
    """
    conditions = [index < size for index, size, tile in guards if size % tile]
    return tirx.all(*conditions) if conditions else None
