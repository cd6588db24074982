"""Softmax, layer normalization and reductions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

few = settings(deadline=None, max_examples=25, derandomize=True)


def numbers(*shape: int, dtype: str = "float32") -> Any:
    return np.random.default_rng([9, *shape]).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("shape", [(5,), (3, 1), (4, 16), (2, 3, 100), (7, 13), (1, 1000)])
def test_softmax(any_lab: Any, op: str, shape: tuple[int, ...]) -> None:
    any_lab.same(f"y = {op}(x)", {"x": numbers(*shape) * 5})


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("axis", [0, 1, -2])
def test_softmax_along_another_axis(lab: Any, op: str, axis: int) -> None:
    lab.same(f"y = {op}<axis={axis}>(x)", {"x": numbers(4, 5, 6)})


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
def test_softmax_of_large_numbers_and_infinities(lab: Any, op: str) -> None:
    x = np.zeros((4, 20), np.float32)
    x[0], x[1, 3], x[2, :7], x[3, 5] = 1e30, -np.inf, 3e38, np.nan
    lab.same(f"y = {op}(x)", {"x": x})


@given(
    rows=st.integers(1, 9), n=st.integers(1, 90), op=st.sampled_from(["Softmax", "LogSoftmax", "LayerNormalization"])
)
@few
def test_rows_of_any_shape(lab: Any, rows: int, n: int, op: str) -> None:
    weight = {"w": numbers(n)} if op == "LayerNormalization" else {}
    lab.same(f"y = {op}({', '.join(['x', *weight])})", {"x": numbers(rows, n)}, weight)


@pytest.mark.parametrize("shape", [(6, 64), (2, 3, 40), (3, 7), (5, 1)])
@pytest.mark.parametrize("bias", [False, True])
def test_layer_normalization(any_lab: Any, shape: tuple[int, ...], bias: bool) -> None:
    constants = {"w": numbers(shape[-1])} | ({"b": numbers(shape[-1]) + 1} if bias else {})
    lowered = any_lab.same(f"y = LayerNormalization<epsilon=0.01>({', '.join(['x', *constants])})",
                           {"x": numbers(*shape)}, constants)  # fmt: skip
    assert len(lowered.calls) == 1


def test_layer_normalization_along_several_axes(lab: Any) -> None:
    lab.same("y = LayerNormalization<axis=1>(x, w)", {"x": numbers(2, 3, 8)}, {"w": numbers(3, 8)})


def test_layer_normalization_of_a_large_mean(lab: Any) -> None:
    """In two passes the variance does not drown in the square of the mean."""
    x = numbers(3, 64) + 5000
    lowered = lab.lower(lab.model("y = LayerNormalization(x, w)", {"x": x}, {"w": np.ones(64, np.float32)}))
    exact = x.astype(np.float64)
    exact -= exact.mean(axis=1, keepdims=True)
    exact /= np.sqrt((exact**2).mean(axis=1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(lab.execute(lowered, {"x": x})["y"], exact, atol=2e-3)


@pytest.mark.parametrize("op", ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL2"])
@pytest.mark.parametrize("axes", [[1], [2], [0, 2], [0, 1, 2]])
def test_reductions(lab: Any, op: str, axes: list[int]) -> None:
    lab.same(f"y = {op}<keepdims=0>(x, axes)", {"x": numbers(3, 20, 33) / 2}, {"axes": np.array(axes)})


def test_a_large_reduction_runs_in_parallel(any_lab: Any) -> None:
    x = numbers(64, 400)
    any_lab.same("y = ReduceMean<keepdims=1>(x, axes)", {"x": x}, {"axes": np.array([1])})
