"""The light models with weights: the same graphs, deterministic, and outputs that tell inputs apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from graphopt import models
from graphopt.models import seeded, zoo

SMALL = ("seeded/squeezenet", "seeded/shufflenet", "seeded/inception_v1", "seeded/densenet121")


def layers(path: Path) -> list[tuple[str, list[str]]]:
    return [(n.op_type, list(n.output)) for n in onnx.load(path).graph.node if n.op_type != "ConstantOfShape"]


@pytest.mark.parametrize("name", SMALL)
def test_nodes_and_weight_shapes_are_those_of_the_light_model(name: str, cache: Path) -> None:
    light = models.build(name.replace("seeded/", "light/"))
    path = models.build(name)
    assert path.parent == cache
    assert layers(path) == layers(light)
    shapes = {value.name: value.shape for value in ir.load(path).graph.initializers.values()}
    fills = {
        node.outputs[0].name: tuple(node.inputs[0].const_value.numpy())
        for node in ir.load(light).graph
        if node.op_type == "ConstantOfShape"
    }
    assert {name: tuple(shapes[name].numpy()) for name in fills} == fills


@pytest.mark.parametrize("name", SMALL)
def test_outputs_are_not_uniform_and_follow_the_input(name: str, cache: Path) -> None:
    session = onnxruntime.InferenceSession(models.build(name))
    generator = np.random.default_rng(0)
    shape = (1, 3, 224, 224)
    a, b = (
        session.run(None, {session.get_inputs()[0].name: generator.standard_normal(shape, dtype=np.float32)})[0]
        for _ in range(2)
    )
    assert np.isfinite(a).all()
    assert a.std() > 1e-3
    assert a.max() < 0.999 or name == "seeded/densenet121"  # which ends without a softmax
    assert np.abs(a - b).max() > 1e-4


def test_a_second_draw_gives_the_same_bytes() -> None:
    path = models.build("light/squeezenet")
    first, second, other = (ir.to_proto(seeded.draw(path, seed)).SerializeToString() for seed in (1, 1, 2))
    assert first == second
    assert first != other


def test_variances_are_positive_and_no_statistic_is_constant(cache: Path) -> None:
    model = ir.load(models.build("seeded/shufflenet"))
    norms = [node for node in model.graph if node.op_type == "BatchNormalization"]
    assert norms
    for node in norms:
        tensors = [value.const_value.numpy() for value in node.inputs[1:]]
        assert all(tensor.std() > 0.02 for tensor in tensors)
        assert tensors[3].min() > 0.5


def test_the_key_follows_the_shipped_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    info = models.describe("seeded/squeezenet")
    key = zoo._key(info)
    (tmp_path / "other.onnx").write_bytes(b"other")
    monkeypatch.setattr(zoo, "_shipped", lambda info: tmp_path / "other.onnx")
    assert zoo._key(info) != key
