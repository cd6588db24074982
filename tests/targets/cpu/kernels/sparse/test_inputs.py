"""Matrix-vector products that skip weights of inputs that are zero: the same numbers, however many are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.cost.workload import SKIP_ZEROS

few = settings(deadline=None, max_examples=20, derandomize=True)


def inputs(k: int, zeros: float, seed: int = 0) -> Any:
    """[1, k], of which that share is zero."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((1, k)).astype(np.float32)
    x[0, generator.permutation(k)[: int(zeros * k)]] = 0
    return x


def check(lab: Any, body: str, feeds: dict[str, Any], constants: dict[str, Any]) -> Any:
    model = lab.model(body, feeds, constants)
    for node in model.graph:
        if node.op_type in ("MatMul", "Gemm"):
            node.metadata_props[SKIP_ZEROS] = "1"
    return lab.check(model, feeds)


@pytest.mark.parametrize("zeros", [0.0, 0.05, 0.5, 0.98, 1.0])
@pytest.mark.parametrize(("k", "n"), [(64, 128), (100, 70), (33, 5), (1, 40)])
def test_product(lab: Any, k: int, n: int, zeros: float) -> None:
    w = np.random.default_rng([k, n]).standard_normal((k, n)).astype(np.float32)
    check(lab, "y = MatMul(x, w)", {"x": inputs(k, zeros)}, {"w": w})


def test_on_every_level(any_lab: Any) -> None:
    w, b = (np.random.default_rng(3).standard_normal(shape).astype(np.float32) for shape in ((60, 90), (60,)))
    lowered = check(any_lab, "t = Gemm <transB = 1>(x, w, b) y = Relu(t)", {"x": inputs(90, 0.5)}, {"w": w, "b": b})
    assert len(lowered.calls) == 1, "the epilogue is fused into both loops"


@given(k=st.integers(1, 300), n=st.integers(1, 300), zeros=st.floats(0, 1))
@few
def test_any_shape(lab: Any, k: int, n: int, zeros: float) -> None:
    w = np.random.default_rng([k, n]).standard_normal((k, n)).astype(np.float32)
    check(lab, "y = MatMul(x, w)", {"x": inputs(k, zeros)}, {"w": w})


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e-41, -0.0])
def test_special_numbers(lab: Any, value: float) -> None:
    """NaN and infinities are no zeros; a negative zero is one."""
    x = inputs(64, 0.5)
    x[0, 7] = value
    w = np.random.default_rng(0).standard_normal((64, 48)).astype(np.float32)
    check(lab, "y = MatMul(x, w)", {"x": x}, {"w": w})


def test_several_rows_take_the_dense_kernel(lab: Any) -> None:
    w = np.random.default_rng(0).standard_normal((64, 48)).astype(np.float32)
    x = np.repeat(inputs(64, 0.5), 5, axis=0)
    check(lab, "y = MatMul(x, w)", {"x": x}, {"w": w})


def test_long_sums_are_as_exact_as_dense_ones(lab: Any) -> None:
    x = np.abs(inputs(16384, 0.3)) + 0.0
    w = np.abs(np.random.default_rng(0).standard_normal((16384, 24))).astype(np.float32)
    model = lab.model("y = MatMul(x, w)", {"x": x}, {"w": w})
    model.graph.node(0).metadata_props[SKIP_ZEROS] = "1"
    exact = x.astype(np.float64) @ w.astype(np.float64)
    np.testing.assert_allclose(lab.execute(lab.lower(model), {"x": x})["y"], exact, rtol=2e-6)
