"""Guards ask no more than is needed, and statements under none stand as they are."""

from __future__ import annotations

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from graphopt.targets.common.kernels.guards import inside, when


def test_a_tile_that_divides_asks_nothing() -> None:
    at = tirx.Var("at", "int32")
    assert inside((at, 64, 32), (at, 32, 16)) is None


def test_only_ragged_axes_are_asked() -> None:
    row, column = tirx.Var("row", "int32"), tirx.Var("column", "int32")
    assert str(inside((row, 64, 32), (column, 65, 32))) == "column < 65"
    assert "row < 63" in str(inside((row, 63, 32), (column, 65, 32)))


def _body(condition: bool) -> str:
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("main")
            kept = T.alloc_buffer((1,), "int32", scope="local")
            with when(kept[0] < 1 if condition else None):
                T.buffer_store(kept, 1, [0])
        return str(builder.get())


def test_no_condition_is_no_branch() -> None:
    assert "if " not in _body(condition=False)
    assert "if " in _body(condition=True)
