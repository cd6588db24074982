"""com.microsoft's quantized operators become standard ones that compute the same integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.frontend.load import load
from graphopt.passes import Normalize
from graphopt.verify.oracle import run_onnxruntime

TYPES = {"float32": "float", "bool": "bool"}


def integers(dtype: str, *shape: int) -> Any:
    low, high = (0, 256) if dtype == "uint8" else (-64, 65)
    return np.random.default_rng([4, *shape]).integers(low, high, shape).astype(dtype)


def declared(name: str, array: Any) -> str:
    return f"{TYPES.get(str(array.dtype), array.dtype)}{list(array.shape) if array.shape else ''} {name}"


def normalized(node: str, result: str, feeds: dict[str, Any]) -> None:
    """Nothing of com.microsoft is left, and ONNX Runtime computes what it computed before."""
    inputs = ", ".join(declared(name, array) for name, array in feeds.items())
    text = f"""<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]>
        g ({inputs}) => ({result} y) {{ y = com.microsoft.{node} }}"""
    model = load(ir.to_proto(ir.from_onnx_text(text))).model
    expected = run_onnxruntime(model, feeds)["y"]
    Normalize()(model)
    assert {n.domain for n in model.graph} == {""}
    actual = run_onnxruntime(model, feeds)["y"]
    if actual.dtype == np.float32:
        np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())
    else:
        np.testing.assert_array_equal(actual, expected)


def quantization(kind: str, *names: str) -> dict[str, Any]:
    """Scales and zero points by name: `xs` and `xz` of `x`."""
    found: dict[str, Any] = {}
    for number, name in enumerate(names):
        found[f"{name}s"] = np.array(0.021731 + 0.0130117 * number, np.float32)
        found[f"{name}z"] = np.array(7 + 30 * number, kind)
    return found


@pytest.mark.parametrize("kind", ["uint8", "int8"])
@pytest.mark.parametrize("operator", ["Add", "Mul"])
def test_of_two(kind: str, operator: str) -> None:
    feeds = {"a": integers(kind, 3, 256), "b": integers(kind, 256)} | quantization(kind, "a", "b", "y")
    normalized(f"QLinear{operator}(a, as, az, b, bs, bz, ys, yz)", f"{kind}[3, 256]", feeds)
    del feeds["yz"]
    normalized(f"QLinear{operator}(a, as, az, b, bs, bz, ys)", f"{kind}[3, 256]", feeds)


@pytest.mark.parametrize("kind", ["uint8", "int8"])
@pytest.mark.parametrize("attributes", ["opset=13", "opset=13, axis=1", "opset=12, axis=1", "opset=11, axis=-1"])
@pytest.mark.parametrize("scale", [1 / 256, 0.013, 0.07])
def test_softmax(kind: str, attributes: str, scale: float) -> None:
    feeds = {"x": integers(kind, 3, 4, 40)} | quantization(kind, "x")
    feeds |= {"ys": np.array(scale, np.float32), "yz": np.array(np.iinfo(kind).min, kind)}
    normalized(f"QLinearSoftmax<{attributes}>(x, xs, xz, ys, yz)", f"{kind}[3, 4, 40]", feeds)


@pytest.mark.parametrize("kind", ["uint8", "int8"])
@pytest.mark.parametrize("operator", ["QLinearSigmoid", "QLinearLeakyRelu<alpha=0.2>", "QLinearLeakyRelu"])
def test_of_one(kind: str, operator: str) -> None:
    feeds = {"x": np.arange(256).astype(kind).reshape(2, 128)} | quantization(kind, "x", "y")
    normalized(f"{operator}(x, xs, xz, ys, yz)", f"{kind}[2, 128]", feeds)


@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("kind", ["uint8", "int8"])
def test_pools(kind: str, last: int) -> None:
    x = integers(kind, 2, 5, 7, 6)
    feeds = {"x": np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if last else x} | quantization(kind, "x", "y")
    options = f"channels_last={last}"
    one, three = ("2, 1, 1, 5", "2, 4, 3, 5") if last else ("2, 5, 1, 1", "2, 5, 4, 3")
    normalized(f"QLinearGlobalAveragePool<{options}>(x, xs, xz, ys, yz)", f"{kind}[{one}]", feeds)
    options += ", kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 0]"
    normalized(f"QLinearAveragePool<{options}>(x, xs, xz, ys, yz)", f"{kind}[{three}]", feeds)


def test_joins_and_choices() -> None:
    feeds = {"a": integers("uint8", 3, 4), "b": integers("uint8", 3, 5)} | quantization("uint8", "a", "b", "y")
    normalized("QLinearConcat<axis=1>(ys, yz, a, as, az, b, bs, bz)", "uint8[3, 9]", feeds)
    feeds["b"], feeds["c"] = integers("uint8", 1, 4), integers("uint8", 3, 4) > 128
    normalized("QLinearWhere(c, a, as, az, b, bs, bz, ys, yz)", "uint8[3, 4]", feeds)


@pytest.mark.parametrize("kind", ["uint8", "int8"])
def test_products_to_floats(kind: str) -> None:
    feeds = {"a": integers("uint8", 2, 3, 9), "b": integers(kind, 9, 5)} | quantization("uint8", "a")
    feeds |= {"bs": np.linspace(0.01, 0.1, 5, dtype=np.float32), "bz": integers(kind, 5), "c": np.ones(5, np.float32)}
    normalized("MatMulIntegerToFloat(a, b, as, bs, az, bz, c)", "float[2, 3, 5]", feeds)
    feeds = {name: feeds[name] for name in ("a", "b", "as")} | {"bs": np.array(0.1, np.float32)}
    normalized("MatMulIntegerToFloat(a, b, as, bs)", "float[2, 3, 5]", feeds)
    x = np.random.default_rng(0).standard_normal((2, 3, 9)).astype(np.float32)
    feeds = {"a": x, "b": feeds["b"], "bs": feeds["bs"], "c": np.ones(5, np.float32)}
    normalized("DynamicQuantizeMatMul(a, b, bs, , c)", "float[2, 3, 5]", feeds)


@pytest.mark.parametrize("options", ["transB=1", "transA=1, alpha=0.5", "alpha=2.0"])
def test_gemm(options: str) -> None:
    a, b = integers("uint8", 4, 9), integers("int8", 9, 5)
    given = {"a": a.T.copy() if "transA" in options else a, "b": b.T.copy() if "transB" in options else b}
    feeds = given | quantization("uint8", "a", "y") | {"bs": np.array(0.1, np.float32), "bz": np.array(3, np.int8)}
    feeds["c"] = np.random.default_rng(1).integers(-999, 999, 5).astype(np.int32)
    normalized(f"QGemm<{options}>(a, as, az, b, bs, bz, c, ys, yz)", "uint8[4, 5]", feeds)
    del feeds["ys"], feeds["yz"]
    normalized(f"QGemm<{options}>(a, as, az, b, bs, bz, c)", "float[4, 5]", feeds)


@pytest.mark.parametrize(
    ("node", "shape", "reason"),
    [
        ("QLinearSoftmax<opset=13, axis=-1>", "2, 3", "of fewer than 4 numbers overflows"),
        ("QLinearAveragePool<kernel_shape=[2], strides=[2], ceil_mode=1>", "1, 1, 3", "has windows of its own"),
    ],
)
def test_what_only_onnx_runtime_computes_as_it_does_is_left_to_it(node: str, shape: str, reason: str) -> None:
    given = ", ".join(f"float {name}s, uint8 {name}z" for name in "xy")
    rank = ", ".join("abc"[: shape.count(",") + 1])
    text = f"""<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]>
        g (uint8[{shape}] x, {given}) => (uint8[{rank}] y) {{ y = com.microsoft.{node}(x, xs, xz, ys, yz) }}"""
    result = Normalize()(load(ir.to_proto(ir.from_onnx_text(text))).model)
    assert any(reason in each.reason for each in result.refusals)
