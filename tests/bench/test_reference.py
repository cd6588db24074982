"""The float64 reference of the layer models, against ONNX Runtime and against a loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt import models
from graphopt.bench import reference
from graphopt.verify.oracle import run_onnxruntime

LAYERS = [name for name in models.names() if name.startswith("layer/")]


@pytest.mark.parametrize("name", LAYERS)
def test_layers_agree_with_onnx_runtime(name: str) -> None:
    info = models.describe(name)
    x = np.random.default_rng(0).standard_normal(info.inputs[0].shape).astype(info.inputs[0].dtype)
    exact = reference.float64(models.build(name), {"x": x})
    assert exact is not None
    assert exact["y"].dtype == np.float64
    found = run_onnxruntime(models.build(name), {"x": x})
    assert 0 < reference.relative_error(exact, found) < (1e-3 if x.dtype == np.float16 else 1e-5)
    assert 0.5 < exact["y"].std() < 2  # the scale of x is kept


def test_convolution_is_the_definition() -> None:
    generator = np.random.default_rng(0)
    x, w = generator.standard_normal((2, 3, 7, 6)), generator.standard_normal((4, 3, 3, 2))
    found = reference.conv(x, w, (2, 1), (1, 0, 2, 1))
    padded = np.zeros((2, 3, 10, 7))
    padded[:, :, 1:8, :6] = x
    assert found.shape == (2, 4, 4, 6)
    for row, column in np.ndindex(4, 6):
        window = padded[:, None, :, 2 * row : 2 * row + 3, column : column + 2]
        np.testing.assert_allclose(found[:, :, row, column], (window * w).sum((2, 3, 4)))


@pytest.mark.parametrize(
    ("shape", "weights", "attributes"),
    [
        ((2, 6, 9, 8), (4, 3, 3, 2), {"group": 2, "dilations": [2, 3], "strides": [1, 2], "pads": [1, 0, 2, 3]}),
        ((1, 5, 7, 7), (10, 1, 3, 3), {"group": 5}),
        ((2, 4, 11), (3, 4, 5), {"strides": [3], "pads": [2, 1]}),
        ((1, 2, 5, 4, 6), (3, 2, 2, 3, 2), {"dilations": [1, 1, 2]}),
    ],
    ids=["groups", "depthwise", "1-D", "3-D"],
)
def test_convolutions_agree_with_onnx(
    shape: tuple[int, ...], weights: tuple[int, ...], attributes: dict[str, Any]
) -> None:
    generator = np.random.default_rng(0)
    x, w, bias = (generator.standard_normal(each).astype(np.float32) for each in (shape, weights, weights[:1]))
    exact = reference.evaluate("Conv", attributes, [each.astype(np.float64) for each in (x, w, bias)])
    assert exact is not None
    node = onnx.helper.make_node("Conv", ["x", "w", "b"], ["y"], **attributes)
    found = run_onnxruntime(_model(node, x=x, w=w, b=bias), {"x": x, "w": w, "b": bias})["y"]
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("attributes", [{}, {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0}])
def test_gemm_agrees_with_onnx(attributes: dict[str, Any]) -> None:
    generator = np.random.default_rng(0)
    a, b, c = (generator.standard_normal(each).astype(np.float32) for each in ((6, 4), (4, 5), (5,)))
    if attributes:
        a, b = a.T.copy(), b.T.copy()
    exact = reference.evaluate("Gemm", attributes, [each.astype(np.float64) for each in (a, b, c)])
    assert exact is not None
    node = onnx.helper.make_node("Gemm", ["a", "b", "c"], ["y"], **attributes)
    found = run_onnxruntime(_model(node, a=a, b=b, c=c), {"a": a, "b": b, "c": c})["y"]
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-5)


def _model(node: onnx.NodeProto, **inputs: np.ndarray[Any, Any]) -> ir.Model:
    info = onnx.helper.make_tensor_value_info
    ports = [info(name, onnx.TensorProto.FLOAT, array.shape) for name, array in inputs.items()]
    graph = onnx.helper.make_graph([node], "g", ports, [info("y", onnx.TensorProto.FLOAT, None)])
    opsets = [onnx.helper.make_opsetid("", 18)]
    return ir.from_proto(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10))


def test_unknown_padding_has_no_reference() -> None:
    ones = np.ones((1, 1, 3, 3))
    assert reference.evaluate("Conv", {"auto_pad": "SAME_UPPER"}, [ones, ones]) is None


def test_other_operators_have_no_reference(tmp_path: Path) -> None:
    text = '<ir_version: 8, opset_import: ["": 18]> g (float[2] x) => (float[2] y) { y = Relu (x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "relu.onnx")
    assert reference.float64(tmp_path / "relu.onnx", {"x": np.zeros(2, np.float32)}) is None


def test_relative_error_is_of_means() -> None:
    assert reference.relative_error({"y": np.array([1.0, 3.0])}, {"y": np.array([1.0, 2.0])}) == 0.25
