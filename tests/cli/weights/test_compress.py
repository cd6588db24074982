"""`graphopt compress` and `graphopt decompress`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from graphopt.cli.compress import default_name
from graphopt.report.weights.published import ALEXNET, VGG16, published
from graphopt.storage.encode import Stages
from graphopt.storage.model import Layer
from tests.helpers.model_proto import text

Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two products, nine in ten of the weights zero."""
    model = text("g (float[1, 200] x) => (float[1, 90] y) { a = MatMul(x, u) b = Relu(a) y = Gemm(b, v, c) }")
    generator = np.random.default_rng(0)
    for name, shape in (("u", (200, 300)), ("v", (300, 90)), ("c", (90,))):
        weights = generator.standard_normal(shape).astype(np.float32)
        if len(shape) > 1:
            weights[generator.random(shape) < 0.9] = 0
        model.graph.initializer.append(numpy_helper.from_array(weights, name))
    path = tmp_path_factory.mktemp("pruned") / "pruned.onnx"
    onnx.save(model, path)
    return path


def test_the_table(graphopt: Cli, pruned: Path, tmp_path: Path) -> None:
    result = graphopt("compress", pruned, "-o", tmp_path / "m.gopz", "--bits", 5)
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[0].split("  ")[0] == "layer"
    assert "RMS error" in lines[0]
    (first,) = [line for line in lines if "200x300" in line]
    assert "31 values" in first
    (total,) = [line for line in lines if line.startswith("total")]
    ratio = pruned.stat().st_size / (tmp_path / "m.gopz").stat().st_size
    assert float(total.split()[-1].removesuffix("x")) == pytest.approx(ratio, rel=0.02)
    assert ratio > 15
    assert "published" not in result.out


def test_json(graphopt: Cli, pruned: Path, tmp_path: Path) -> None:
    document = graphopt("compress", pruned, "-o", tmp_path / "m.gopz", "--bits", 6, "--json").document
    assert document["bits"] == 6
    assert document["file_bytes"] == (tmp_path / "m.gopz").stat().st_size
    assert [layer["operator"] for layer in document["layers"]] == ["MatMul", "Gemm"]
    for layer in document["layers"]:
        stages = layer["stages"]
        assert stages["final"] <= stages["shared"] < stages["pruned"] < stages["original"]
        assert 0 < layer["error"]["rms_relative"] < 0.05
        assert layer["density"] == pytest.approx(0.1, abs=0.01)
    assert document["published"] is None


def test_without_bits_nothing_is_lost(graphopt: Cli, pruned: Path, tmp_path: Path) -> None:
    out, back = tmp_path / "m.gopz", tmp_path / "back.onnx"
    result = graphopt("compress", pruned, "-o", out)
    assert f"Wrote {out}: every tensor comes back bit by bit." in result.out
    assert "error" not in result.out
    assert graphopt("decompress", out, "-o", back).code == 0
    assert onnx.load(back) == onnx.load(pruned)
    assert graphopt("decompress", out, "-o", back).code == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back.onnx", "m.gopz"]


def test_commands_take_the_file(graphopt: Cli, pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under any name: what it is says its content."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRAPHOPT_COSTS", "roofline")
    assert graphopt("compress", pruned, "-o", "m.onnx", "--bits", 8).code == 0
    assert graphopt("compile", "m.onnx", "-o", "m.gopt").code == 0
    assert "agrees with ONNX Runtime" in graphopt("verify", "m.onnx", "m.gopt").out
    assert "200" in graphopt("inspect", "--sparsity", "m.onnx").out
    result = graphopt("bench", "m.onnx", "--runs", 2, "--json")
    assert result.document["models"][0]["equal"], result.err


def test_default_names(graphopt: Cli, pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert graphopt("compress", pruned).code == 0
    assert graphopt("decompress", "pruned.gopz").code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pruned.gopz", "pruned.onnx"]
    assert default_name("zoo:light/resnet50") == default_name("models/resnet50.onnx") == "resnet50.gopz"


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["compress", "absent.onnx"], 1, "absent.onnx: does not exist"),
        (["compress", "zoo:nothing"], 1, "nothing"),
        (["compress", "text.onnx"], 1, "text.onnx is text, not an ONNX protobuf"),
        (["compress", "pruned.onnx", "-o", "text.onnx"], 1, "is a file of another kind"),
        (["compress", "pruned.onnx", "-o", "no/m.gopz"], 1, "the folder no does not exist"),
        (["compress", "pruned.onnx", "--bits", "4"], 2, "greater than or equal to 5"),
        (["compress", "pruned.onnx", "--bits", "9"], 2, "less than or equal to 8"),
        (["decompress", "absent.gopz"], 1, "absent.gopz cannot be opened (No such file or directory)"),
        (["decompress", "text.onnx", "-o", "m.onnx"], 1, "text.onnx is no compressed model"),
        (["decompress", "cut.gopz"], 1, "cut.gopz is not a graphopt compressed model or is damaged: it has no end"),
        (["compile", "cut.gopz"], 1, "cut.gopz is not a graphopt compressed model or is damaged: it has no end"),
        (["run", "whole.gopz", "--random"], 1, "whole.gopz is not a graphopt artifact"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_written(
    graphopt: Cli, pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    arguments: list[str], code: int, sentence: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pruned.onnx").write_bytes(pruned.read_bytes())
    (tmp_path / "text.onnx").write_text("hello\n")
    assert graphopt("compress", "pruned.onnx", "-o", "whole.gopz").code == 0
    (tmp_path / "cut.gopz").write_bytes((tmp_path / "whole.gopz").read_bytes()[:-100])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    result = graphopt(*arguments)
    assert result.code == code
    assert result.one_sentence
    assert sentence in result.err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def _layer(operator: str, shape: tuple[int, ...]) -> Layer:
    return Layer("n", operator, "w", shape, 0.1, "dense", 0, Stages(100, 50, 20, 10), None)


def test_networks_of_the_paper_are_recognised() -> None:
    fully_connected = [_layer("Gemm", (4096, 9216)), _layer("MatMul", (4096, 4096)), _layer("Gemm", (1000, 4096))]
    convolutions = [_layer("Conv", (64, 3, kernel, kernel)) for kernel in (11, 5, 3, 3, 3)]
    assert published([*convolutions, *fully_connected]) is ALEXNET
    assert published([*convolutions[:-1], *fully_connected]) is None
    deeper = [_layer("Conv", (64, 3, 3, 3))] * 13
    assert published([*deeper, *fully_connected]) is None
    assert published([*deeper, _layer("Gemm", (4096, 25088)), *fully_connected[1:]]) is VGG16


@pytest.mark.parametrize(("network", "parameters"), [
    (ALEXNET, [34_848, 307_200, 884_736, 663_552, 442_368, 37_748_736, 16_777_216, 4_096_000]),
    (VGG16, [1728, 36_864, 73_728, 147_456, 294_912, 589_824, 589_824, 1_179_648, *[2_359_296] * 5,
             102_760_448, 16_777_216, 4_096_000]),
], ids=["AlexNet", "VGG-16"])  # fmt: skip
def test_published_layers_add_up_to_the_published_total(network: Any, parameters: list[int]) -> None:
    left = sum(count * percent / 100 for count, (_, percent) in zip(parameters, network.layers.values(), strict=True))
    assert sum(parameters) / left == pytest.approx(network.times, rel=0.08)
    kept = sum(count * percent / 100 for count, (percent, _) in zip(parameters, network.layers.values(), strict=True))
    assert kept / sum(parameters) == pytest.approx({35: 0.11, 49: 0.075}[network.times], abs=0.002)


def test_a_compressed_model_does_not_lose_weights_to_itself(graphopt: Cli, tmp_path: Path) -> None:
    path = tmp_path / "a.gopz"
    assert graphopt("compress", "zoo:lenet-digits", "-o", path).code == 0
    before = path.read_bytes()
    result = graphopt("compress", path, "-o", path, "--bits", "5")
    assert result.code == 1
    assert result.one_sentence
    assert "is the model itself, whose exact weights would be lost; name another file" in result.err
    assert path.read_bytes() == before
    assert graphopt("compress", path, "-o", path).code == 0
