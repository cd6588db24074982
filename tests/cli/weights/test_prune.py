"""`graphopt prune`: a smaller or sparser model in a file, judged on data."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from graphopt import models

Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    images, labels = models.digits()
    np.savez(path, image=images[:100], labels=labels[:100])
    return path


def zeros(path: Path) -> dict[str, float]:
    arrays = {each.name: onnx.numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer}
    return {name: float((array == 0).mean()) for name, array in arrays.items() if array.ndim > 1}


def test_a_pruned_model_is_the_users_with_fewer_weights(graphopt: Cli, tmp_path: Path) -> None:
    path = tmp_path / "pruned.onnx"
    result = graphopt("prune", "zoo:lenet-digits", "--sparsity", "0.75", "-o", path)
    assert result.code == 0, result.err
    assert "75.0%" in result.out
    before, after = onnx.load(models.build("lenet-digits")), onnx.load(path)
    for name in ("node", "input", "output"):
        assert [str(each) for each in getattr(before.graph, name)] == [str(each) for each in getattr(after.graph, name)]
    assert before.opset_import == after.opset_import
    assert before.ir_version == after.ir_version
    assert list(zeros(path).values()) == pytest.approx([0.75] * 4, abs=0.01)
    assert [each.name for each in tmp_path.iterdir()] == ["pruned.onnx"]


def test_channels_are_gone_and_the_quality_is_said(graphopt: Cli, tmp_path: Path, digits: Path) -> None:
    path, picture = tmp_path / "small.onnx", tmp_path / "scores.svg"
    arguments = ("prune", "zoo:lenet-digits", "--sparsity", "0.25", "--granularity", "filter", "-o", path)
    document = graphopt(*arguments, "--eval", digits, "--svg", picture, "--json").document
    assert [each["outputs_inputs_taps_after"] for each in document["layers"]] == [
        [12, 1, 9],
        [24, 12, 9],
        [48, 96, 1],
        [10, 48, 1],
    ]
    assert path.stat().st_size < 0.7 * models.build("lenet-digits").stat().st_size
    quality = document["quality"]
    assert quality["samples"] == 100
    assert quality["dense"]["top1"] > 0.95
    assert quality["changed"]["top1"] < quality["dense"]["top1"]
    assert set(quality["energy"]) == {"node_conv2d", "node_conv2d_1", "node_linear"}
    bars = [each for each in ElementTree.parse(picture).iter("{http://www.w3.org/2000/svg}rect") if len(each)]
    assert len(bars) > 10
    text = graphopt(*arguments, "--eval", digits).out
    for row in ("top-1", "top-5", "entropy", "flip rate", "expected calibration error", "worst class", "KL(dense"):
        assert row in text
    assert "its outputs are the model's" in text


@pytest.mark.parametrize(("flag", "limit"), [("--max-kl", "0.001"), ("--max-flip", "0.01")])
def test_a_limit_that_is_exceeded_writes_nothing(
    flag: str, limit: str, graphopt: Cli, tmp_path: Path, digits: Path
) -> None:
    result = graphopt(
        *("prune", "zoo:lenet-digits", "--sparsity", "0.9", "-o", tmp_path / "a.onnx"),
        *("--eval", digits, flag, limit, "--svg", tmp_path / "a.svg"),
    )
    assert result.code == 1
    assert result.one_sentence
    assert f"above {flag} {limit}" in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--sparsity", "1.5"], "--sparsity is 1.5; it must be a share from 0 to 1"),
        (["--sparsity", "0.5", "--granularity", "rows"], "there is no granularity 'rows'; there are element, row"),
        (["--sparsity", "0.5", "--criterion", "taylor"], "there is no criterion 'taylor'; there are energy, magnitude"),
        (["--sparsity", "0.5", "--layer", "node_linaer=0.5"], "did you mean node_linear"),
        (["--layer", "node_linear"], "is not NAME=SHARE"),
        (["--layer", "node_linear_1=0.5", "--granularity", "block:16x1"], "10 outputs, which 16 does not divide"),
        (["--layer", "node_linear=0.5", "--layer", "node_linear=0.6"], "names node_linear twice, with 0.5 and 0.6"),
        (["--layer", "node_linear=0.5", "--skip", "node_linear"], "gives node_linear a sparsity and --skip spares it"),
        (["--sparsity", "0.5", "--costs", "roofline"], "--costs is about what layers cost, which --keep-energy alone"),
        (["--sparsity", "0.5", "--level", "avx2"], "--level is about what layers cost"),
        (["--sparsity", "0.5", "--threads", "2"], "--threads is about what layers cost"),
        ([], "nothing says how much goes; give --sparsity"),
        (["--keep-energy", "0.9", "--sparsity", "0.5"], "leave out --sparsity and --layer"),
        (["--keep-energy", "1.5"], "--keep-energy is 1.5; it must be a share above 0"),
        (["--keep-energy", "0.9", "--granularity", "filter"], "filter takes channels out"),
        (["--sparsity", "0.5", "--max-kl", "1"], "--max-kl needs samples to compare the models on; give --eval"),
        (["--sparsity", "0.5", "--svg", "a.svg"], "--svg needs samples"),
        (["--sparsity", "0.5", "--eval", "none.npz"], "none.npz is not a file"),
        (["--sparsity", "0.5", "--eval", "none.npz", "--max-flip", "2"], "--max-flip is 2; it must be a number from 0"),
    ],
)
def test_bad_arguments_are_one_sentence(arguments: list[str], sentence: str, graphopt: Cli, tmp_path: Path) -> None:
    result = graphopt("prune", "zoo:lenet-digits", "-o", tmp_path / "a.onnx", *arguments)
    assert result.code == 1
    assert result.one_sentence
    assert sentence in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"image": np.zeros((2, 1, 8, 9), np.float32)}, "and samplesx1x8x8 is expected"),
        ({"picture": np.zeros((2, 1, 8, 8), np.float32)}, "which is no input; inputs are image"),
        ({"image": np.zeros((2, 1, 8, 8), np.float32), "labels": np.array([0, 10])}, "labels hold 10, and the classes"),
    ],
)
def test_samples_that_do_not_fit(arrays: dict[str, Any], sentence: str, graphopt: Cli, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    result = graphopt(
        *("prune", "zoo:lenet-digits", "--sparsity", "0.5", "-o", tmp_path / "a.onnx", "--eval", tmp_path / "a.npz")
    )
    assert result.code == 1
    assert result.one_sentence
    assert sentence in result.err
    assert [each.name for each in tmp_path.iterdir()] == ["a.npz"]


def test_a_file_of_another_kind_stays(graphopt: Cli, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_text("mine")
    result = graphopt("prune", "zoo:lenet-digits", "--sparsity", "0.5", "-o", tmp_path / "a.onnx")
    assert "is a file of another kind" in result.err
    assert (tmp_path / "a.onnx").read_text() == "mine"


@pytest.mark.parametrize("kind", ["itself", "symbolic link", "hard link"])
def test_the_dense_model_is_not_written_over(kind: str, graphopt: Cli, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(tiny.read_bytes())
    output = path if kind == "itself" else tmp_path / "link.onnx"
    if kind == "symbolic link":
        output.symlink_to(path)
    elif kind == "hard link":
        output.hardlink_to(path)
    result = graphopt("prune", path, "--granularity", "2:4", "-o", output)
    assert result.code == 1
    assert result.one_sentence
    assert "is the model itself, whose dense weights would be lost; name another file" in result.err
    assert path.read_bytes() == tiny.read_bytes()


def test_a_pruned_model_is_replaced(graphopt: Cli, tiny: Path, tmp_path: Path) -> None:
    for granularity, share in (("2:4", 0.5), ("1:4", 0.75)):
        assert graphopt("prune", tiny, "--granularity", granularity, "-o", tmp_path / "a.onnx").code == 0
        assert zeros(tmp_path / "a.onnx") == {"w": share}


@pytest.mark.parametrize("arguments", [["prune", "--sparsity", "0.5"], ["compress"], ["compile"]])
def test_one_file_for_the_result_and_the_plot(
    arguments: list[str], graphopt: Cli, tmp_path: Path, digits: Path
) -> None:
    command, *more = arguments
    (tmp_path / "folder").mkdir()
    files = ("-o", tmp_path / "a.x", "--svg", tmp_path / "folder" / ".." / "a.x", "--eval", digits)
    result = graphopt(command, "zoo:lenet-digits", *more, *files)
    assert result.code == 1
    assert result.one_sentence
    assert "a.x is what --svg names too; name another file" in result.err
    assert not (tmp_path / "a.x").exists()


def test_costs_of_the_environment_are_for_all_commands(
    graphopt: Cli, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAPHOPT_COSTS", "roofline")
    assert graphopt("prune", tiny, "--granularity", "2:4", "-o", tmp_path / "a.onnx").code == 0
