"""Elementwise functions and places of extremes at special values: NaN and infinities where ONNX Runtime has them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx.parser
import pytest

from graphopt.compiler import compile_model
from graphopt.verify.oracle import run_onnxruntime

UNARY = (
    *("Relu", "LeakyRelu", "LeakyRelu<alpha=0.0>", "ThresholdedRelu", "ThresholdedRelu<alpha=0.5>", "Elu", "Selu"),
    *("Elu<alpha=0.5>", "Celu<alpha=2.0>", "HardSigmoid", "HardSigmoid<alpha=0.0>", "HardSwish", "Softplus", "Mish"),
    *("Softsign", "Sigmoid", "Tanh", "Erf", "Exp", "Log", "Sqrt", "Reciprocal", "Abs", "Neg", "Sign", "Sinh", "Cosh"),
    *("Asinh", "Acosh", "Atanh", "Atan"),
    *("Shrink<lambd=1.0, bias=0.5>", "IsNaN", "IsInf", "Cast<to=6>", "Cast<to=7>", "Cast<to=9>"),
)
NOT_IN_FLOAT64 = ("LeakyRelu", "ThresholdedRelu", "Selu", "Celu", "Erf", "Shrink", "HardSwish", "HardSigmoid", "Mish",
                  "Elu", "Sigmoid", "Softplus", "Softsign", "Sinh", "Cosh", "Asinh", "Acosh", "Atanh",
                  "Atan")  # fmt: skip
NOT_IN_FLOAT16 = ("Celu", "Mish", "HardSwish", "IsInf", "Softplus", "Gelu")
"""ONNX Runtime or ONNX has no such kernel, or rounds constants to float32, or cancels."""

BINARY = (
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Max",
    "Min",
    "PRelu",
    "Equal",
    "Less",
    "LessOrEqual",
    "Greater",
    "GreaterOrEqual",
)


def values(dtype: str) -> Any:
    info = np.finfo(dtype)
    ordinary = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, 1e-3, -1e-3, 3.2, -3.2, 9.0, 20.0, 100.0, -100.0, 1e4]
    return np.array([*ordinary, info.max, info.min, info.tiny, -info.tiny, np.inf, -np.inf, np.nan], dtype)


def agree(want: dict[str, Any], got: dict[str, Any], kinds: tuple[str, ...], rtol: float) -> None:
    for (name, array), kind in zip(want.items(), kinds, strict=True):
        np.testing.assert_allclose(got[name], array, rtol=rtol, atol=2e-7, err_msg=kind)


@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-5), ("float64", 1e-8), ("float16", 2e-3)])
def test_functions(lab: Any, dtype: str, rtol: float) -> None:
    left_out = {"float64": NOT_IN_FLOAT64, "float16": NOT_IN_FLOAT16}.get(dtype, ())
    kinds = tuple(kind for kind in UNARY if not kind.startswith(tuple(left_out)))
    names = tuple(f"y{i}" for i in range(len(kinds)))
    body = " ".join(f"{name} = {kind}(x)" for name, kind in zip(names, kinds, strict=True))
    feeds = {"x": values(dtype)}
    model = lab.model(body, feeds, outputs=names, opset=20)
    agree(run_onnxruntime(model, feeds), lab.execute(lab.lower(model), feeds), kinds, rtol)


@pytest.mark.parametrize(("kind", "dtype", "points"), [
    ("Sinh", "float32", (88.0, 88.8, 89.4, 89.5, 1e-6, 1e-38)),
    ("Cosh", "float32", (88.0, 88.8, 89.4, 89.5, 1e-6, 1e-38)),
    ("Sinh", "float16", (11.0, 11.2, 11.7, 11.8, 1e-3)),
    ("Cosh", "float16", (11.0, 11.2, 11.7, 11.8, 1e-3)),
    ("Atanh", "float32", (1e-38, 1e-7, 1e-4, 0.01, 0.49, 0.51, 0.9999)),
    ("Tanh", "float64", (1e-300, 1e-16, 1e-9, 0.01, 0.62, 0.63, 5.0, 20.0, 800.0)),
])  # fmt: skip
def test_relative_error_near_zero_and_where_results_overflow(lab: Any, kind: str, dtype: str, points: Any) -> None:
    feeds = {"x": np.array([*points, *(-point for point in points)], dtype)}
    model = lab.model(f"y = {kind}(x)", feeds, outputs=("y",), opset=20)
    got = lab.execute(lab.lower(model), feeds)["y"]
    np.testing.assert_allclose(got, run_onnxruntime(model, feeds)["y"], rtol=8 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_functions_of_two(lab: Any, dtype: str) -> None:
    x = values(dtype)
    kinds = tuple(kind for kind in BINARY if dtype == "float32" or kind != "PRelu")  # which ONNX Runtime lacks
    feeds = {"x": np.repeat(x, len(x)), "z": np.tile(x, len(x))}
    names = tuple(f"y{i}" for i in range(len(kinds)))
    body = " ".join(f"{name} = {kind}(x, z)" for name, kind in zip(names, kinds, strict=True))
    model = lab.model(body, feeds, outputs=names, opset=20)
    agree(run_onnxruntime(model, feeds), lab.execute(lab.lower(model), feeds), kinds, 0.0)


@pytest.mark.parametrize("count", [1, 3])
def test_extremes_of_several(lab: Any, count: int) -> None:
    """They broadcast, and one NaN among them is the result."""
    x = values("float32")
    feeds = {"a": x.reshape(-1, 1), "b": x[::-1].copy(), "c": np.float32([np.nan] * 3 + [0.5] * (len(x) - 3))}
    feeds = dict(list(feeds.items())[:count])
    body = f"y = Max({', '.join(feeds)}) z = Min({', '.join(feeds)})"
    model = lab.model(body, feeds, outputs=("y", "z"))
    agree(run_onnxruntime(model, feeds), lab.execute(lab.lower(model), feeds), ("Max", "Min"), 0.0)


@pytest.mark.parametrize("shape", [(7,), (3, 8), (2, 5, 16), (40, 100)])
def test_places_of_extremes(lab: Any, shape: tuple[int, ...]) -> None:
    """Also where all are infinite, and among equals: the first, or the last."""
    random = np.random.default_rng([3, *shape])
    x = random.integers(-3, 3, shape).astype(np.float32)
    x[random.random(shape) < 0.3] = -np.inf
    x[..., :1] = np.where(random.random((*shape[:-1], 1)) < 0.5, -np.inf, x[..., :1])
    x[0] = -np.inf
    kinds = []
    for axis in range(len(shape)):
        kinds.append(f"Hardmax<axis={axis}>")
        for flags in ("keepdims=0", "keepdims=1", "select_last_index=1"):
            kinds += [f"{op}<axis={axis}, {flags}>" for op in ("ArgMax", "ArgMin")]
    names = tuple(f"y{i}" for i in range(len(kinds)))
    body = " ".join(f"{name} = {kind}(x)" for name, kind in zip(names, kinds, strict=True))
    model = lab.model(body, {"x": x}, outputs=names)
    agree(run_onnxruntime(model, {"x": x}), lab.execute(lab.lower(model), {"x": x}), tuple(kinds), 0.0)


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int32"])
@pytest.mark.parametrize("kind", ["Max", "Min"])
def test_extremes_of_many(lab: Any, kind: str, dtype: str) -> None:
    """An operand written out in every later comparison would be there 3^29 times."""
    generator = np.random.default_rng(5)
    feeds = {f"x{i}": (generator.standard_normal((4, 3)) * 9).astype(dtype) for i in range(30)}
    if dtype != "int32":
        feeds["x3"][0, 0], feeds["x29"][1, 1], feeds["x0"][2, 2] = np.nan, np.nan, np.inf
    model = lab.model(f"y = {kind}({', '.join(feeds)})", feeds, outputs=("y",), opset=20)
    np.testing.assert_array_equal(lab.execute(lab.lower(model), feeds)["y"], run_onnxruntime(model, feeds)["y"])


def test_swiglu_beyond_what_onnxruntime_knows() -> None:
    """The definition, a Sigmoid(alpha a) b, in double precision: where it overflows, and at infinities and NaN."""
    model = onnx.parser.parse_model("""<ir_version: 13, opset_import: ["": 28]>
        g (float[25] a, float[25] b) => (float[25] y) { y = SwiGLU <alpha = 1.5> (a, b) }""")
    a = values("float32")
    b = np.roll(a, 3)
    compiled = compile_model(model, fallback=False)
    with np.errstate(all="ignore"):
        wide = a.astype(np.float64)
        expected = (wide / (1 + np.exp(-1.5 * wide)) * b).astype(np.float32)
        expected[np.isneginf(a)] = np.nan  # -inf times 0
    np.testing.assert_allclose(compiled.artifact.session().run({"a": a, "b": b})["y"], expected, rtol=1e-5, atol=1e-30)
