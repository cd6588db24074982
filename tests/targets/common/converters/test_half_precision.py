"""Operators of halves on CPUs are computed in single precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt.verify.oracle import Tolerance, run_onnxruntime
from tests.helpers.equal import require_equal


@pytest.mark.parametrize("operands", ["x, s, b", "x, s"])
def test_layer_normalization(lab: Any, operands: str) -> None:
    """A mean far from zero: also in single precision its square must not hide the deviation."""
    generator = np.random.default_rng(5)
    feeds = {"x": (generator.standard_normal((3, 40)) * 10 + 5000).astype(np.float16)}
    constants = {name: generator.standard_normal(40).astype(np.float16) for name in ("s", "b") if name in operands}
    model = lab.model(f"y = LayerNormalization ({operands})", feeds, constants)
    found = lab.execute(lab.lower(model), feeds)
    require_equal(run_onnxruntime(model, feeds), found, "LayerNormalization", {"float16": Tolerance(2e-3, 1e-3)})


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_batch_normalization_by_statistics_of_the_run(lab: Any, dtype: str) -> None:
    generator = np.random.default_rng(6)
    x = generator.standard_normal((2, 5, 3, 4))
    x[0, :2, 0] = [[np.nan, np.inf, -np.inf, 0], [-0.0, 1e-7, 100, -100]]
    feeds = {
        "x": x,
        **{name: generator.uniform(-2, 2, 5) for name in ("s", "b", "m")},
        "v": np.array([0, 1, 2, 9, 1e-6]),
    }
    feeds = {name: array.astype(dtype) for name, array in feeds.items()}
    model = lab.model("y = BatchNormalization<epsilon = 0.001>(x, s, b, m, v)", feeds, {})
    bounds = {"float16": Tolerance(2e-3, 1e-3), "float32": Tolerance(1e-6, 1e-6), "float64": Tolerance(1e-14, 1e-14)}
    require_equal(run_onnxruntime(model, feeds), lab.execute(lab.lower(model), feeds), "y", bounds)
