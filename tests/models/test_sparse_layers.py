"""Layers with block-sparse weights, built from what their names say."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt import models
from graphopt.errors import ModelError
from graphopt.models import sparse, sparse_inputs
from graphopt.verify.oracle import run_onnxruntime


def test_the_names_of_the_grid_are_names_of_models() -> None:
    grid = sparse.grid()
    assert len(set(grid)) == len(grid) == (3 * 3 + 4) * 4 * 5 + 4
    assert all(models.describe(f"sparse/{name}").inputs for name in grid)


@pytest.mark.parametrize(
    ("name", "shape", "weights"),
    [
        ("96x64-m5-b16x1-s90", (5, 96), (96, 64)),
        ("96x64-m5-b32x32-s50", (5, 96), (96, 64)),
        ("conv96x64-w7-b16x1-s80", (1, 96, 7, 7), (64, 96, 1, 1)),
    ],
)
def test_a_layer(name: str, shape: tuple[int, ...], weights: tuple[int, ...]) -> None:
    layer = sparse.parse(name)
    assert isinstance(layer, sparse.SparseLayer)
    model = sparse.build(layer, 0)
    (x,), (w,) = model.graph.inputs, model.graph.initializers.values()
    assert (tuple(x.shape), tuple(w.shape)) == (shape, weights)
    matrix = w.const_value.numpy().reshape(weights[:2])
    matrix = matrix.T if layer.conv else matrix
    tiles = matrix.reshape(96 // layer.depth, layer.depth, 64 // layer.width, layer.width)
    zero = ~(tiles != 0).any(axis=(1, 3))
    assert zero.sum() == zero.size * layer.percent // 100
    assert models.describe(f"sparse/{name}").inputs[0].shape == shape


@pytest.mark.parametrize(
    "name", ["96x64-w5-b16x1-s90", "conv96x64-m5-b16x1-s90", "96x64-m5-b16x1", "0x64-m5-b16x1-s90"]
)
def test_other_names_are_refused(name: str) -> None:
    assert sparse.parse(name) is None
    with pytest.raises(ModelError, match="the model zoo has no model"):
        models.describe(f"sparse/{name}")


def test_equal_seeds_give_equal_weights() -> None:
    layer = sparse.parse("96x64-m5-b16x1-s90")
    assert layer is not None
    first, second = (next(iter(sparse.build(layer, 1).graph.initializers.values())) for _ in range(2))
    np.testing.assert_array_equal(first.const_value.numpy(), second.const_value.numpy())


def test_shuffled_outputs_hold_the_same_blocks() -> None:
    plain, shuffled = (sparse.parse(f"96x64-m5-b16x1-s90{end}") for end in ("", "-shuffled"))
    assert plain is not None
    assert shuffled is not None
    masks = [
        next(iter(sparse.build(layer, 0).graph.initializers.values())).const_value.numpy() != 0
        for layer in (plain, shuffled)
    ]
    assert sorted(map(bytes, masks[0].T)) == sorted(map(bytes, masks[1].T))
    assert (masks[0] != masks[1]).any()


@pytest.mark.parametrize("percent", [0, 50, 90])
def test_inputs_that_are_zero(percent: int) -> None:
    """The share holds for inputs that calibration never saw, of another size too."""
    stack = sparse.parse(f"mlp1024x4-z{percent}")
    assert isinstance(stack, sparse_inputs.ReluStack)
    model = sparse.build(stack, 0)
    hidden = [node.outputs[0] for node in model.graph if node.op_type == "Relu"]
    model.graph.outputs.extend(hidden)
    for value in hidden:
        value.type, value.shape = model.graph.inputs[0].type, model.graph.inputs[0].shape
    x = np.random.default_rng(5).standard_normal((1, 1024)).astype(np.float32)
    found = run_onnxruntime(model, {"x": x})
    shares = [float((found[str(value.name)] == 0).mean()) for value in hidden]
    assert shares == pytest.approx([percent / 100] * 3, abs=0.06)
    assert 0.01 < np.abs(found["y"]).mean() < 100
