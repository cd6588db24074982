"""`graphopt verify`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

Cli = Callable[..., Any]


def test_every_pass_and_the_program(graphopt: Cli, tiny: Path) -> None:
    result = graphopt("verify", tiny)
    assert (result.code, result.err) == (0, "")
    assert "agrees with ONNX Runtime" in result.out
    assert "select-conv" in result.out


def test_an_artifact(graphopt: Cli, tiny: Path, compiled: Path) -> None:
    document = graphopt("verify", tiny, compiled, "--samples", 3, "--json").document
    assert document["equal"] is True
    assert len(document["outputs"]) == 3
    assert all(0 <= each["largest"] <= each["allowed"] for each in document["outputs"])


def test_the_artifact_of_another_model(graphopt: Cli, tiny: Path, compiled: Path, tmp_path: Path) -> None:
    model = onnx.load(tiny)
    weight = onnx.numpy_helper.to_array(model.graph.initializer[0])
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight * np.float32(1.01), "w"))
    onnx.save(model, tmp_path / "other.onnx")
    result = graphopt("verify", tmp_path / "other.onnx", compiled, "--json")
    assert result.code == 1
    assert result.document["equal"] is False
    assert "output y" in result.document["outputs"][0]["problem"]


def test_the_artifact_of_a_model_with_other_inputs(
    graphopt: Cli, write_model: Callable[[str, Path], Path], compiled: Path, tmp_path: Path
) -> None:
    text = '<ir_version: 10, opset_import: ["": 20]> g (float[4] a) => (float[4] b) { b = Relu(a) }'
    result = graphopt("verify", write_model(text, tmp_path / "other.onnx"), compiled)
    assert result.code == 1
    assert "was compiled from another model: its inputs are x, those of" in result.err


def test_shapes_are_lists_in_json(graphopt: Cli, tiny: Path, compiled: Path) -> None:
    (output,) = graphopt("verify", tiny, compiled, "--json").document["outputs"]
    assert all(isinstance(size, int) for size in output["shape"])
