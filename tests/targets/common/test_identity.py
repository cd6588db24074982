"""Kernels that are the same have one symbol and one text, whatever their variables are called."""

from __future__ import annotations

import re
from typing import Any

import pytest
import tvm
from tvm import te

from graphopt.targets.common.identity import identify, readable


def function(name: str = "x", *, extent: int = 8, factor: float = 2.0, block: str = "y") -> Any:
    x = te.placeholder((extent,), name=name)
    y = te.compute((extent,), lambda i: x[i] * tvm.tirx.const(factor, "float32"), name=block)
    return te.create_prim_func([x, y])


def test_names_of_parameters_do_not_matter() -> None:
    first, second = identify(function("lv3"), "scale1"), identify(function("in0"), "scale27")
    assert first == second
    assert re.fullmatch(r"scale_[0-9a-f]{12}", first.symbol)


@pytest.mark.parametrize("other", [function(extent=9), function(factor=2.5), function(block="z")])
def test_what_matters_makes_another_kernel(other: Any) -> None:
    first, second = identify(function(), "scale"), identify(other, "scale")
    assert first.text != second.text
    assert first.symbol != second.symbol


def test_annotations_matter() -> None:
    """A tile is one: the schedule follows it."""
    schedule = tvm.s_tir.Schedule(function())
    schedule.annotate(schedule.get_sblock("y"), "graphopt.tile", "14x2")
    assert identify(schedule.mod["main"], "scale").symbol != identify(function(), "scale").symbol


def test_a_name_is_part_of_the_kernel() -> None:
    assert identify(function(), "a").symbol != identify(function(), "b").symbol


def test_the_symbol_of_a_function_is_none_of_its_content() -> None:
    assert identify(function().with_attr("global_symbol", "other"), "scale") == identify(function(), "scale")


@pytest.mark.parametrize("factor", [0.1, -0.0, 1e-30, float("inf"), float("-inf")])
def test_the_function_comes_back_from_its_text(factor: float) -> None:
    made = identify(function("lv3", factor=factor), "scale")
    tvm.ir.assert_structural_equal(made.function(), function("lv3", factor=factor).without_attr("global_symbol"))


def test_a_name_of_a_block_is_kept_though_a_variable_has_it_too() -> None:
    again = tvm.s_tir.Schedule(identify(function(block="T_add12"), "scale").function())
    assert str(again.get(again.get_sblock("T_add12")).name_hint) == "T_add12"


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("fused_conv_direct12_add3_relu", "conv_direct_add_relu"),
        ("softmax", "softmax"),
        ("conv2d7", "conv2d"),
        ("a.b-c", "a_b_c"),
        ("7", "kernel_7"),
        ("x" * 90, "x" * 40),
    ],
)
def test_readable_names(name: str, stem: str) -> None:
    assert readable(name) == stem
