"""`graphopt inspect`."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.frontend import load as loading
from tests.helpers.text_models import parse

Cli = Callable[..., Any]
LAYER = "zoo:sparse/96x128-m8-b16x1-s90-shuffled"


def test_the_table(graphopt: Cli) -> None:
    result = graphopt("inspect", "--sparsity", LAYER, "--costs", "roofline")
    assert (result.code, result.err) == (0, "")
    (row,) = [line for line in result.out.splitlines() if line.startswith("layer ") and "128x96" in line]
    assert "MatMul" in row
    assert "10.0%" in row
    assert "sparse" in row


def test_json(graphopt: Cli) -> None:
    (layer,) = graphopt("inspect", "--sparsity", LAYER, "--costs", "roofline", "--json").document["layers"]
    assert layer["clustered"] < layer["given"] <= 1
    assert layer["bound"] <= layer["clustered"]
    assert layer["random"] == pytest.approx(1 - 0.9 ** layer["width"], abs=0.02)
    assert layer["decision"].startswith("sparse")
    assert layer["seconds"] < layer["instead_of_seconds"]
    assert not {"before", "after"} & set(layer)


def test_the_picture(graphopt: Cli, tmp_path: Path) -> None:
    assert graphopt("inspect", "--sparsity", LAYER, "--costs", "roofline", "--svg", tmp_path / "a.svg").code == 0
    root = ElementTree.parse(tmp_path / "a.svg").getroot()
    before, after = (each.attrib["d"] for each in root.iter("{http://www.w3.org/2000/svg}path"))
    assert before.count("M") > 0
    assert after.count("M") > 0
    assert before != after


def test_a_dense_model(graphopt: Cli, tiny: Path, tmp_path: Path) -> None:
    result = graphopt("inspect", "--sparsity", tiny, "--costs", "roofline")
    assert result.code == 0
    assert "No product or convolution has constant weights that are zero." in result.out
    result = graphopt("inspect", "--sparsity", tiny, "--costs", "roofline", "--svg", tmp_path / "a.svg")
    assert result.code == 1
    assert "there is nothing to draw; leave out --svg" in result.err
    assert list(tmp_path.iterdir()) == []


def test_what_to_show_has_to_be_said(graphopt: Cli, tiny: Path) -> None:
    result = graphopt("inspect", tiny)
    assert result.code == 2
    assert "say what to show: --sparsity" in result.err


def test_a_model_is_loaded_once_and_what_is_permuted_is_told(
    graphopt: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = """g (float[64,64] x, float[64,128] w, float[128,128] v) => (float[64,128] y)
        { t = MatMul(x, w) r = Relu(t) y = MatMul(r, v) }"""
    model = parse(text, {"w": (64, 128), "v": (128, 128)})
    generator = np.random.default_rng(0)
    kept = np.repeat(generator.random((64, 8)) < 0.1, 16, axis=1)[:, generator.permutation(128)]
    weight = model.graph.initializers["w"]
    weight.const_value = ir.Tensor((weight.const_value.numpy() * kept).astype(np.float32), name="w")
    ir.save(model, tmp_path / "mlp.onnx")
    calls: list[Any] = []
    load = loading.load
    monkeypatch.setattr(loading, "load", lambda *args, **more: calls.append(args) or load(*args, **more))
    report = graphopt("inspect", "--sparsity", tmp_path / "mlp.onnx", "--costs", "roofline", "--json")
    assert len(calls) == 1
    (sentence,) = report.document["permuted"]
    assert sentence.startswith("outputs of matmul0 are permuted: ")
    shown = graphopt("inspect", "--sparsity", tmp_path / "mlp.onnx", "--costs", "roofline").out
    assert "Permuted at no cost in a run: outputs of matmul0" in " ".join(shown.split())
