"""The sparsity of every layer, chosen by what the passes of `compile` would pay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

from graphopt.cli import main
from graphopt.errors import GraphoptError
from graphopt.passes.prune.granularity import Granularity
from graphopt.passes.prune.plan import Recipe
from graphopt.pruning.budget import Budget, choose
from graphopt.pruning.model import prune_model


def budget(keep: float, granularity: str = "block:16x1") -> Budget:
    return choose("zoo:lenet-digits", Recipe(Granularity.parse(granularity)), keep, costs="roofline")


@pytest.mark.parametrize("keep", [0.6, 0.8])
def test_the_budget_is_kept_and_the_model_is_faster(keep: float) -> None:
    found = budget(keep)
    assert found.energy >= keep
    assert all(layer.energy >= 0.25 for layer in found.layers)
    assert found.seconds < found.dense_seconds
    assert found.gap == 0
    assert found.seconds == pytest.approx(sum(layer.seconds for layer in found.layers))
    assert all(layer.seconds <= layer.dense_seconds for layer in found.layers)
    pruned = {layer.name: layer for layer in prune_model("zoo:lenet-digits", found.recipe).layers}
    for layer in found.layers:
        assert pruned[layer.name].asked == layer.sparsity
        assert pruned[layer.name].energy == pytest.approx(layer.energy)


def test_less_energy_is_never_slower() -> None:
    assert budget(0.5).seconds <= budget(0.65).seconds <= budget(0.8).seconds


def test_layers_with_one_name_have_a_budget_each() -> None:
    random = np.random.default_rng(0)
    weights = {name: random.standard_normal((256, 256)).astype(np.float32) for name in "wv"}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["t"], "a"),
        helper.make_node("Relu", ["t"], ["r"], "a"),
        helper.make_node("MatMul", ["r", "v"], ["y"], "a"),
    ]
    ends = [[helper.make_tensor_value_info(name, 1, [32, 256])] for name in "xy"]
    stored = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    model = helper.make_model(helper.make_graph(nodes, "g", *ends, stored), ir_version=8)
    model.opset_import[0].version = 17
    found = choose(model, Recipe(Granularity.parse("block:16x1")), 0.8, costs="roofline")
    assert [layer.name for layer in found.layers] == ["a", "a_2"]
    layers = prune_model(model, found.recipe).layers
    assert [layer.asked for layer in layers] == [layer.sparsity for layer in found.layers]
    assert sum(layer.energy for layer in layers) / 2 == pytest.approx(found.energy)
    assert found.energy >= 0.8


def test_the_mean_is_of_the_listed_layers_and_the_others_have_reasons() -> None:
    random = np.random.default_rng(0)
    weights = {"w": (64, 64, 3, 3), "d": (64, 1, 3, 3), "v": (64, 64, 3, 3), "u": (10, 64, 1, 1)}
    pads: dict[str, Any] = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "first", **pads),
        helper.make_node("Conv", ["a", "d"], ["b"], "depthwise", group=64, **pads),
        helper.make_node("Conv", ["b", "v"], ["c"], "second", **pads),
        helper.make_node("Conv", ["c", "u"], ["y"], "last"),
    ]
    ends = [[helper.make_tensor_value_info(name, 1, [1, n, 8, 8])] for name, n in (("x", 64), ("y", 10))]
    stored = [
        numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), name)
        for name, shape in weights.items()
    ]
    model = helper.make_model(helper.make_graph(nodes, "g", *ends, stored), ir_version=8)
    model.opset_import[0].version = 17
    found = choose(model, Recipe(Granularity.parse("block:16x1"), skip=("first",)), 0.3, costs="roofline")
    assert [layer.name for layer in found.layers] == ["second"]
    assert found.energy == pytest.approx(found.layers[0].energy)
    assert {layer.name: (layer.skipped, layer.reason) for layer in prune_model(model, found.recipe).layers} == {
        "first": (True, "skipped as asked"),
        "depthwise": (True, "has no sparse kernel, so zeros gain nothing"),
        "second": (False, ""),
        "last": (True, "has 10 outputs, which 16 does not divide"),
    }


def test_nothing_to_gain_is_said() -> None:
    with pytest.raises(GraphoptError, match="no layer becomes faster while 100.0% of the energy stays"):
        budget(1.0)


def test_the_command_prints_the_choice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["prune", "zoo:mlp-digits", "--keep-energy", "0.8", "--granularity", "block:16x1"]
    arguments += ["--costs", "roofline", "-o", str(tmp_path / "a.onnx")]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "The sparsity of each layer" in text
    assert "has 10 outputs, which 16 does not divide" in text
    assert "no other choice is faster" in text
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["budget"]
    assert found["energy"] >= 0.8
    assert found["seconds"] < found["dense_seconds"]
