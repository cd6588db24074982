"""The float64 reference of the layer models, against ONNX Runtime and against a loop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from graphopt import models
from graphopt.bench import reference
from graphopt.verify import run_onnxruntime

LAYERS = [name for name in models.names() if name.startswith("layer/")]


@pytest.mark.parametrize("name", LAYERS)
def test_layers_agree_with_onnx_runtime(name: str) -> None:
    info = models.describe(name)
    x = np.random.default_rng(0).standard_normal(info.inputs[0].shape).astype(np.float32)
    exact = reference.float64(models.build(name), {"x": x})
    assert exact is not None
    assert exact["y"].dtype == np.float64
    found = run_onnxruntime(models.build(name), {"x": x})
    assert 0 < reference.relative_error(exact, found) < 1e-5
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


def test_other_operators_have_no_reference(tmp_path: Path) -> None:
    text = '<ir_version: 8, opset_import: ["": 18]> g (float[2] x) => (float[2] y) { y = Relu (x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "relu.onnx")
    assert reference.float64(tmp_path / "relu.onnx", {"x": np.zeros(2, np.float32)}) is None


def test_relative_error_is_of_means() -> None:
    assert reference.relative_error({"y": np.array([1.0, 3.0])}, {"y": np.array([1.0, 2.0])}) == 0.25
