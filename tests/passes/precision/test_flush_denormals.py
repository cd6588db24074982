"""before -> after; the `rewrite` fixture checks validity, numbers and idempotence each time."""

from typing import Any

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from graphopt.passes import FlushDenormals
from graphopt.pipeline.pass_base import PassResult
from graphopt.verify.oracle import run_onnxruntime

TINY = float(np.finfo(np.float32).tiny)


def model(body: str, weight: Any, shape: str = "float[1,4,5]") -> ir.Model:
    kind = {"float32": "float", "float16": "float16", "float64": "double"}[weight.dtype.name]
    dims = ",".join(map(str, weight.shape))
    x = shape.replace("float", kind)
    text = f'<ir_version: 10, opset_import: ["": 20]> g ({x} x, {kind}[{dims}] w) => ({kind} y) {{ {body} }}'
    built = ir.from_proto(onnx.parser.parse_model(text))
    value = built.graph.inputs.pop(1)
    value.const_value = ir.Tensor(weight, name="w")
    built.graph.register_initializer(value)
    return built


def flushed(built: ir.Model) -> tuple[Any, PassResult]:
    result = FlushDenormals()(built)
    assert isinstance(result, PassResult)
    (weight,) = built.graph.initializers.values()
    assert weight.const_value is not None
    return weight.const_value.numpy(), result


WEIGHT = np.array([[0.5, 1e-40, -2e-39, 0.0, TINY], [-0.0, 1e-44, 3.0, -TINY, 1e-30]] * 2, np.float32)


@pytest.mark.parametrize(
    "body", ["y = Add(x, w)", "y = Sub(x, w)", "y = Mul(w, x)", "t = Transpose<perm=[0,2,1]>(x) y = MatMul(t, w)"]
)
def test_denormal_numbers_become_zero_and_nothing_else(body: str) -> None:
    built = model(body, WEIGHT)
    feeds = {"x": np.random.default_rng(1).standard_normal((1, 4, 5)).astype(np.float32)}
    before = run_onnxruntime(built, feeds)["y"]
    weight, result = flushed(built)
    np.testing.assert_array_equal(weight, np.where(np.abs(WEIGHT) < TINY, 0, WEIGHT))
    np.testing.assert_allclose(run_onnxruntime(built, feeds)["y"], before, rtol=1e-6, atol=10 * TINY)
    assert result.modified
    assert result.notes == ("6 denormal weights of 1 tensors are taken as zero",)
    assert not FlushDenormals()(built).modified


def test_a_convolution() -> None:
    weight = np.full((2, 4, 3), 0.25, np.float32)
    weight[1] = 1e-41  # a channel that weight decay has put to sleep
    found, _ = flushed(model("y = Conv(x, w)", weight))
    assert not found[1].any()
    np.testing.assert_array_equal(found[0], weight[0])


@pytest.mark.parametrize(
    ("body", "weight", "reason"),
    [
        ("y = Div(x, w)", WEIGHT, "Div reads it, which may tell a denormal number from zero"),
        ("l = Log(w) y = Mul(x, l)", WEIGHT, "Log reads it, which may tell a denormal number from zero"),
        (
            "y = Mul(x, w)",
            np.clip(WEIGHT, -1e-30, 1e-30),
            "its largest element is hardly larger than a denormal number",
        ),
        ("y = Mul(x, w)", np.full_like(WEIGHT, 1e-42), "its largest element is hardly larger than a denormal number"),
    ],
)
def test_refusals(body: str, weight: Any, reason: str) -> None:
    found, result = flushed(model(body, weight))
    np.testing.assert_array_equal(found, weight)
    assert not result.modified
    assert [(each.node, each.reason) for each in result.refusals] == [("w", reason)]


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_what_is_denormal_depends_on_the_type(dtype: Any) -> None:
    """Halves below 2^-14 are ordinary weights; 1e-40 is an ordinary float64."""
    weight = np.array([[1.0, 1e-5, 1e-40, 3e-310, 0.0]] * 4, dtype)
    found, result = flushed(model("y = Add(x, w)", weight))
    assert result.modified == (dtype is np.float64)
    assert found[0, 1] == weight[0, 1]
    assert found[0, 2] == weight[0, 2]
    assert not found[0, 3]


def test_special_values_stay() -> None:
    weight = np.array([[np.nan, np.inf, -np.inf, 1e-40, 1.0]] * 4, np.float32)
    found, _ = flushed(model("y = Add(x, w)", weight))
    np.testing.assert_array_equal(found, np.where(np.abs(weight) == np.float32(1e-40), 0, weight))
