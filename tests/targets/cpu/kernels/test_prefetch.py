"""Prefetches of the next panel: which lines are asked for, where, and that nothing else changes."""

from __future__ import annotations

import itertools
import operator
from typing import Any

import numpy as np
import pytest
from tvm import s_tir, te, tirx

from graphopt.targets.common.host_arrays import empty, tensor
from graphopt.targets.cpu import rules
from graphopt.targets.cpu.build import compile_functions
from graphopt.targets.cpu.kernels import gemm
from graphopt.targets.cpu.kernels.conv import direct, winograd
from graphopt.targets.cpu.kernels.prefetch import MARK
from graphopt.targets.cpu.machine import detect

LINE = 16  # floats


def scheduled(compute: Any, *shapes: tuple[int, ...]) -> Any:
    inputs = [
        te.placeholder([tirx.IntImm("int64", extent) for extent in shape], "float32", name=f"p{number}")
        for number, shape in enumerate(shapes)
    ]
    function, note = rules.apply(te.create_prim_func([*inputs, compute(*inputs)]), detect(None, 2))
    assert note == ""
    return function


def product(rows: int, tile: int, panels: int, k: int) -> Any:
    """`rows` x `k` times `k` x `panels * 32`, with register tiles of `tile` rows."""
    shapes = ((1, rows, k), (1, panels, k, 32))
    return scheduled(lambda a, b: gemm.compute(a, b, (rows, panels * 32), (0, 1, 1), tile), *shapes)


def loops_of(function: Any) -> list[Any]:
    """The loops from the outermost to the one whose body begins with a prefetch."""
    found: list[Any] = []

    def visit(statement: Any, around: list[Any]) -> None:
        if isinstance(statement, tirx.SeqStmt):
            if isinstance(statement[0], tirx.Evaluate | tirx.IfThenElse) and "llvm.prefetch" in str(statement[0]):
                found[:] = found or around
            for part in statement:
                visit(part, around)
        elif isinstance(statement, s_tir.SBlockRealize):
            visit(statement.block.body, around)
        elif isinstance(statement, tirx.For):
            visit(statement.body, [*around, statement])

    visit(function.body, [])
    return found


ARITHMETIC = {tirx.Add: operator.add, tirx.Sub: operator.sub, tirx.Mul: operator.mul, tirx.LT: operator.lt}
ARITHMETIC |= {tirx.FloorDiv: operator.floordiv, tirx.FloorMod: operator.mod}


def value(expression: Any, variables: dict[Any, int]) -> int:
    if isinstance(expression, tirx.IntImm):
        return int(expression.value)
    if type(expression) in ARITHMETIC:
        return ARITHMETIC[type(expression)](value(expression.a, variables), value(expression.b, variables))
    if isinstance(expression, tirx.Cast):
        return value(expression.value, variables)
    return next(number for loop, number in variables.items() if loop.loop_var.same_as(expression))


def fetched(function: Any) -> list[int]:
    """Places in the weights of all lines that a run asks for, in order, by interpreting the function's expressions."""
    loops = loops_of(function)
    first = [part for part in loops[-1].body if not isinstance(part, tirx.For)]
    guards = [part.condition for part in first if isinstance(part, tirx.IfThenElse)]
    calls = first[0].then_case if guards else first
    calls = [calls] if isinstance(calls, tirx.Evaluate) else list(calls)
    places = [next(arg for arg in call.value.args if "address_of" in str(arg)).args[0].indices[-1] for call in calls]
    found = []
    for numbers in itertools.product(*(range(int(loop.extent)) for loop in loops)):
        variables = dict(zip(loops, numbers, strict=True))
        if all(value(guard, variables) for guard in guards):
            found += [value(place, variables) for place in places]
    return found


@pytest.mark.parametrize(
    ("rows", "tile", "panels", "k"),
    [
        (16, 8, 3, 32),  # two passes, each fetches half
        (24, 8, 2, 20),  # three passes: shares that do not come out even
        (64, 4, 2, 8),  # more passes than a panel has shares
    ],
)
def test_every_pass_fetches_its_part_of_the_next_panel(rows: int, tile: int, panels: int, k: int) -> None:
    found = fetched(product(rows, tile, panels, k))
    panel = k * 32
    wanted = set(range(panel, (panels + 1) * panel, LINE))
    assert wanted <= set(found)
    assert len(found) - len(set(found)) <= 8 * panels  # a last share reaches into the panel after
    assert max(found) < (panels + 1) * panel + LINE * 8


def test_one_pass_fetches_nothing() -> None:
    function = product(8, 8, 4, 32)
    assert "prefetch" not in str(function)
    assert MARK not in str(function)


def test_no_mark_stays_in_a_function_with_prefetches() -> None:
    function = product(16, 8, 3, 32)
    assert "llvm.prefetch" in str(function)
    assert MARK not in str(function)


def test_a_direct_convolution_fetches_the_next_channel_tile() -> None:
    tile = direct.Tile(6, 2)
    shapes = ((1, 2, 6, 8, 16), (4, 2, 3, 3, 16, 16), (4, 16))
    function = scheduled(
        lambda x, w, b: direct.compute(x, w, b, (1, 1), (1, 1), detect(None, 2), tile),
        *shapes,
    )
    panel = 2 * 2 * 3 * 3 * 16 * 16  # two of the four channel vectors
    found = fetched(function)
    assert set(found) >= set(range(panel, 3 * panel, LINE))
    assert len(found) == len(set(found))


def test_a_winograd_product_fetches_the_next_channel_tile() -> None:
    tile = winograd.Tile(4, 2)
    shapes = ((16, 1, 2, 8, 16), (16, 4, 2, 16, 16))
    function = scheduled(lambda v, u: winograd.product(v, u, detect(None, 2), tile), *shapes)
    panel = 2 * 2 * 16 * 16
    found = fetched(function)
    assert set(found) >= set(range(panel, 32 * panel, LINE))
    assert len(found) == len(set(found))


def test_the_product_is_the_same() -> None:
    function = product(24, 8, 2, 20)
    a, panels = (np.random.default_rng(0).standard_normal(s).astype(np.float32) for s in ((1, 24, 20), (1, 2, 20, 32)))
    arrays = [empty(a.shape, "float32"), empty(panels.shape, "float32"), empty((24, 64), "float32")]
    for array, values in zip(arrays, (a, panels, np.float32(np.nan)), strict=True):
        array[...] = values
    compile_functions({"k": function.with_attr("global_symbol", "k")}, detect(None, 2))["k"](*map(tensor, arrays))
    expected = a[0].astype(np.float64) @ panels[0].transpose(1, 0, 2).reshape(20, 64)
    np.testing.assert_allclose(arrays[2], expected, rtol=1e-5, atol=1e-5)
