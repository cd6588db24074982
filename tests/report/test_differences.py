"""Differences of outputs, in numbers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.report.differences import differences
from graphopt.verify.judge import Judge

MODEL = ir.from_onnx_text('<ir_version: 10, opset_import: ["": 20]> g (float[2] x) => (float[2] y) { y = Neg(x) }')
FEEDS = {"x": np.ones(2, np.float32)}


def test_largest_difference_and_bound() -> None:
    expected = {"y": np.array([1.0, -100.0], np.float32), "i": np.array([1, 2])}
    actual = {"y": np.array([1.0, -100.005], np.float32), "i": np.array([1, 2])}
    y, i = differences(Judge(MODEL, FEEDS, expected), actual)
    assert abs((y.largest or 0) - 0.005) < 1e-5
    assert y.allowed is not None
    assert abs(y.allowed - (1e-6 + 1e-4 * 100)) < 1e-9
    assert (y.problem, i.problem) == ("", "")
    assert (i.largest, i.allowed) == (0.0, 0.0)


def test_problems_are_named() -> None:
    expected = {"y": np.zeros(2, np.float32), "s": np.array(["a"], dtype=object), "n": np.array([np.nan])}
    actual = {"y": np.ones(2, np.float32), "s": np.array(["b"], dtype=object)}
    y, s, n = differences(Judge(MODEL, FEEDS, expected), actual)
    assert "output y at [0]" in y.problem
    assert s.problem
    assert s.largest is None
    assert n.problem == "output n is missing"
