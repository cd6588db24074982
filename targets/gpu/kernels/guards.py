"""Statements that only some threads run: where a tile reaches beyond what there is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T


@contextmanager
def when(condition: Any) -> Iterator[None]:
    """Statements under a condition, or under none."""
    if condition is None:
        yield
        return
    with T.If(condition), T.Then():
        yield


def inside(*guards: tuple[Any, int, int]) -> Any:
    """The condition that places exist: each is (index, size, tile), and is checked unless the tile divides the size.

    None where nothing is checked.
    """
    conditions = [index < size for index, size, tile in guards if size % tile]
    return tirx.all(*conditions) if conditions else None
