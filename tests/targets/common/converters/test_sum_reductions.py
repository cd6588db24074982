"""Errors of sums against float64, beside ONNX Runtime's on the same input; constant rows, and sums of halves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from graphopt.verify.oracle import run_onnxruntime

Exact = Callable[[Any], Any]

REDUCTIONS: dict[str, Exact] = {
    "ReduceSum": lambda x: x.sum(-1),
    "ReduceMean": lambda x: x.mean(-1),
    "ReduceL1": lambda x: np.abs(x).sum(-1),
    "ReduceL2": lambda x: np.sqrt((x * x).sum(-1)),
    "ReduceSumSquare": lambda x: (x * x).sum(-1),
    "ReduceLogSum": lambda x: np.log(np.abs(x).sum(-1)),
    "ReduceLogSumExp": lambda x: x.max(-1) + np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1)),
}


def rows(n: int, dtype: str) -> Any:
    """Constants, alternating signs, a large mean with small noise, and ordinary numbers."""
    random = np.random.default_rng(n)
    large = 1e4 if dtype == "float32" else 100.0
    alternating = np.where(np.arange(n) % 2 == 0, large, -large) + 0.1
    found = [np.full(n, 0.1), np.full(n, large), np.full(n, 1 / 3), alternating, large + random.standard_normal(n) / 2]
    return np.array([*found, random.standard_normal(n), random.random(n)]).astype(dtype)


def errors_are_no_larger(want: Any, got: Any, reference: Any, dtype: str) -> None:
    """For each row: at most twice ONNX Runtime's error and two roundings."""
    for row, (exact, ours, theirs) in enumerate(zip(want, got, reference, strict=True)):
        with np.errstate(over="ignore"):
            scale = np.abs(np.asarray(exact).astype(dtype).astype(np.float64)).max()
        if not np.isfinite(scale):
            np.testing.assert_array_equal(ours, theirs)
            continue
        bound = 2 * np.abs(np.asarray(theirs, np.float64) - exact).max() + 2 * scale * np.finfo(dtype).eps
        assert np.abs(np.asarray(ours, np.float64) - exact).max() <= bound, f"row {row}"


@pytest.mark.parametrize(("dtype", "n"), [("float32", 4097), ("float32", 45632), ("float16", 3000)])
@pytest.mark.parametrize("first", [False, True])
def test_reductions(lab: Any, dtype: str, n: int, first: bool) -> None:
    """Along the last axis, and along the first."""
    x = rows(n, dtype)
    feeds = {"x": x.T.copy() if first else x}
    names = tuple(f"y{i}" for i in range(len(REDUCTIONS)))
    steps = [f"{y} = {op}<keepdims=0>({'a' if 'LogSum' in op and 'Exp' not in op else 'x'}, axis)" for y, op in
             zip(names, REDUCTIONS, strict=True)]  # fmt: skip
    model = lab.model(f"a = Abs(x) {' '.join(steps)}", feeds, {"axis": np.array([0 if first else 1])}, outputs=names)
    got, reference = lab.execute(lab.lower(model), feeds), run_onnxruntime(model, feeds)
    for name, exact in zip(names, REDUCTIONS.values(), strict=True):
        with np.errstate(over="ignore"):
            errors_are_no_larger(exact(x.astype(np.float64)), got[name], reference[name], dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_and_planes(lab: Any, dtype: str) -> None:
    """Normalizations, pools and running sums."""
    x = rows(768, dtype)
    feeds = {"x": x}
    shape = np.array([len(x), 1, 24, 32])
    constants = {
        "w": np.ones(768, dtype),
        "one": np.ones(1, dtype),
        "zero": np.zeros(1, dtype),
        "s": shape,
        "axis": np.array(1),
    }
    body = """
        a = LayerNormalization(x, w) b = Softmax(x) p = Reshape(x, s)
        c = GlobalAveragePool(p) d = AveragePool<kernel_shape=[24, 32]>(p)
        e = InstanceNormalization(p, one, zero) f = CumSum(x, axis)
    """
    model = lab.model(body, feeds, constants, outputs=tuple("abcdef"))
    got, reference = lab.execute(lab.lower(model), feeds), run_onnxruntime(model, feeds)
    wide = x.astype(np.float64)
    centred = wide - wide.mean(-1, keepdims=True)
    normal = centred / np.sqrt((centred * centred).mean(-1, keepdims=True) + 1e-5)
    powers = np.exp(wide - wide.max(-1, keepdims=True))
    want = {
        "a": normal,
        "b": powers / powers.sum(-1, keepdims=True),
        "c": wide.mean(-1).reshape(-1, 1, 1, 1),
        "d": wide.mean(-1).reshape(-1, 1, 1, 1),
        "e": normal.reshape(shape),
        "f": wide.cumsum(-1),
    }
    for name, exact in want.items():
        errors_are_no_larger(exact, got[name], reference[name], dtype)


@pytest.mark.parametrize("n", [5, 64, 768, 1001])
def test_a_constant_row_has_no_variance(lab: Any, n: int) -> None:
    """Its mean is the constant itself, so that nothing is divided by almost 0."""
    x = np.repeat(np.array([[0.1], [1e4], [-1 / 3], [1e-20]], np.float32), n, axis=1)
    model = lab.model("y = LayerNormalization<epsilon=0.0000000001>(x, w)", {"x": x}, {"w": np.ones(n, np.float32)})
    assert not lab.execute(lab.lower(model), {"x": x})["y"].any()


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_sums_of_infinities(lab: Any, value: float) -> None:
    x = np.ones((3, 80), np.float32)
    x[0, 3], x[1] = value, value
    names = tuple(f"y{i}" for i in range(len(REDUCTIONS)))
    body = " ".join(f"{y} = {op}<keepdims=1>(x, axis)" for y, op in zip(names, REDUCTIONS, strict=True))
    model = lab.model(body, {"x": x}, {"axis": np.array([1])}, outputs=names)
    want, got = run_onnxruntime(model, {"x": x}), lab.execute(lab.lower(model), {"x": x})
    for name, op in zip(names, REDUCTIONS, strict=True):
        np.testing.assert_allclose(got[name], want[name], rtol=1e-6, err_msg=op)
