"""Operators of halves on CPUs are computed in single precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt.verify import Tolerance, require_equal, run_onnxruntime


@pytest.mark.parametrize("operands", ["x, s, b", "x, s"])
def test_layer_normalization(lab: Any, operands: str) -> None:
    """A mean far from zero: also in single precision its square must not hide the deviation."""
    generator = np.random.default_rng(5)
    feeds = {"x": (generator.standard_normal((3, 40)) * 10 + 5000).astype(np.float16)}
    constants = {name: generator.standard_normal(40).astype(np.float16) for name in ("s", "b") if name in operands}
    model = lab.model(f"y = LayerNormalization ({operands})", feeds, constants)
    found = lab.execute(lab.lower(model), feeds)
    require_equal(run_onnxruntime(model, feeds), found, "LayerNormalization", {"float16": Tolerance(2e-3, 1e-3)})
