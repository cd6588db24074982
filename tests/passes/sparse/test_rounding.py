"""Without loss, clustering changes results by the order of summation alone: layer by layer, against float64."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import models
from graphopt.compiler import compile_model
from graphopt.frontend.load import load

EPSILON = float(np.finfo(np.float32).eps)


@pytest.mark.parametrize(
    "name",
    [
        "256x192-m40-b16x1-s80-shuffled",
        "256x192-m1-b16x1-s80-shuffled",
        "256x192-m40-b4x1-s80-shuffled",
        "256x192-m40-b32x32-s70-shuffled",
        "256x192-m40-b1x1-s90",
        "conv128x96-w9-b16x1-s80",
    ],
)
def test_errors_are_those_of_rounding(name: str) -> None:
    """The error of a sum of K products is a random walk of K roundings; no weight is changed or lost."""
    model = load(f"zoo:sparse/{name}").model
    weights = _weights(model)
    x = np.random.default_rng(0).standard_normal(models.describe(f"sparse/{name}").inputs[0].shape).astype(np.float32)
    compiled = compile_model(f"zoo:sparse/{name}", costs="roofline", threads=2)
    assert [n for n in compiled.pipeline.model.graph if n.op_type.startswith("BlockSparse")], "it is computed by blocks"
    y = compiled.artifact.session().run({"x": x})["y"].astype(np.float64)
    columns = x.reshape(x.shape[1], -1).T if x.ndim == 4 else x
    y = y.reshape(y.shape[1], -1).T if x.ndim == 4 else y
    exact = columns.astype(np.float64) @ weights
    sizes = np.abs(columns.astype(np.float64)) @ np.abs(weights)  # what is rounded on the way is not larger
    terms = np.count_nonzero(weights, axis=0)
    assert (np.abs(y - exact) <= EPSILON * np.sqrt(terms + 1) * sizes).all()


def _weights(model: ir.Model) -> np.ndarray:
    """[K, N] in float64."""
    (node,) = [node for node in model.graph if node.op_type in ("MatMul", "Conv")]
    value = node.inputs[1]
    assert value is not None
    assert value.const_value is not None
    array = value.const_value.numpy().astype(np.float64)
    return np.asarray(array.reshape(array.shape[0], -1).T if node.op_type == "Conv" else array)
