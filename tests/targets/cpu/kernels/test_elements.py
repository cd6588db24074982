"""Elementwise operators where a processor's instruction is not the operator: not-a-numbers, and division by zero."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx.parser
import pytest

import graphopt
from graphopt.verify.oracle import run_onnxruntime


def run(lab: Any, body: str, feeds: dict[str, Any], **constants: Any) -> Any:
    model = lab.model(body, feeds, constants)
    return lab.execute(lab.lower(model), feeds)["y"]


@pytest.mark.parametrize("tail", ["Relu(c)", "Clip(c, low, high)"])
def test_a_nan_outlives_the_fused_activation(any_lab, tail) -> None:
    x = np.ones((1, 16, 8, 8), np.float32)
    x[0, 3, 4, 4] = np.nan
    x[0, :, 0, 0] = -np.inf
    constants = {"w": np.full((4, 16, 3, 3), 0.5, np.float32)}
    if tail.startswith("Clip"):
        constants |= {"low": np.array(-1, np.float32), "high": np.array(6, np.float32)}
    y = run(any_lab, f"c = Conv(x, w)  y = {tail}", {"x": x}, **constants)
    low, high = (0, np.inf) if tail.startswith("Relu") else (-1, 6)
    assert np.isnan(y[0, :, 2:5, 2:5]).all()
    assert (y[0, :, 0, 0] == low).all()
    assert (y[0, :, 5, 5] == min(72.0, high)).all()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("bounds", ["l, h", "l", '"", h'])
def test_a_nan_outlives_bounds_that_only_the_run_knows(lab, dtype, bounds) -> None:
    special = np.array([np.inf, -np.inf, np.nan, 0.5, -3, 2, -0.0, 1e-3], dtype)
    given = {"l": np.array(-1, dtype), "h": np.array(1, dtype)}
    feeds = {"x": np.tile(special, (3, 1))} | {name: each for name, each in given.items() if name in bounds}
    model = lab.model(f"a = Add(x, x) y = Clip(a, {bounds})", feeds, {})
    want, got = run_onnxruntime(model, feeds)["y"], lab.execute(lab.lower(model), feeds)["y"]
    # An absent bound is `normalize`'s matter: the largest number.
    infinite = ~np.isfinite(got) & ~np.isnan(got)
    np.testing.assert_array_equal(got[~infinite], want[~infinite])


def divide(operator: str, a: Any, b: Any) -> list[int]:
    """Through the whole compiler: ONNX Runtime, which the other tests ask for types, refuses these operands."""
    kind, count = a.dtype.name, a.size
    text = f"g ({kind}[{count}] a, {kind}[{count}] b) => ({kind}[{count}] y) {{ y = {operator}(a, b) }}"
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 20]> {text}')
    result: list[int] = graphopt.compile(model, fallback=False).session().run({"a": a, "b": b})["y"].tolist()
    return result


def test_integer_division_by_zero_does_not_end_the_process() -> None:
    a = np.array([7, -7, 7, -7, 5, -(2**63), -(2**63)], np.int64)
    b = np.array([2, 2, -2, -2, 0, -1, 0], np.int64)
    assert divide("Div", a, b) == [3, -3, -3, 3, 0, -(2**63), 0]
    assert divide("Mod", a, b) == [1, 1, -1, -1, 0, 0, 0]
    assert divide("Mod<fmod = 1>", a, b) == [1, -1, 1, -1, 0, 0, 0]


def test_unsigned_division() -> None:
    assert divide("Div", np.array([200, 255, 3], np.uint8), np.array([7, 255, 0], np.uint8)) == [28, 1, 0]


def test_half_precision_convolutions_add_in_single_precision(lab) -> None:
    draw = np.random.default_rng(3)
    x, w = (draw.standard_normal(shape).astype(np.float16) for shape in ((1, 64, 6, 6), (8, 64, 3, 3)))
    y = run(lab, "y = Conv(x, w)", {"x": x}, w=w)
    windows = np.lib.stride_tricks.sliding_window_view(x.astype(np.float64), (3, 3), axis=(2, 3))
    exact = np.einsum("nchwij,ocij->nohw", windows, w.astype(np.float64))
    # One rounding to half precision at the end; 576 of them on the way would cost some thirty times as much.
    assert np.abs(y - exact).max() <= 0.6 * np.spacing(np.abs(exact).max().astype(np.float16))
