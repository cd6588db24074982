"""`graphopt bench`: never a time, always the shape of the answer."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]


@pytest.mark.slow
def test_a_model_that_fails_is_a_row(graphopt: Cli, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.onnx").write_bytes(tiny.read_bytes()[:200])
    result = graphopt("bench", tmp_path / "cut.onnx", tiny, "--runs", 4, "--threads", 1, "--json")
    assert result.code == 1
    cut, good = result.document["models"]
    assert "cut.onnx" in cut["error"]
    assert good["error"] is None
    assert good["equal"] is True
    assert good["sides"]["graphopt"]["runs"] == good["sides"]["onnxruntime"]["runs"] == 4
    ratio = good["ratios"]["onnxruntime"]
    assert 0 < ratio["low"] <= ratio["value"] <= ratio["high"]
    assert result.document["geometric_mean"]["onnxruntime"]["value"] == pytest.approx(ratio["value"])
    for side in good["sides"].values():
        assert side["low"] <= side["value"] <= side["high"]
        assert side["peak_bytes"] is None or side["peak_bytes"] > 0


def test_a_failure_is_also_a_sentence_on_stderr(graphopt: Cli, tmp_path: Path) -> None:
    result = graphopt("bench", tmp_path / "none.onnx")
    assert result.code == 1
    assert result.one_sentence, result.err
    assert result.err.count("none.onnx") == 1
    assert "Failed" in result.out


def test_without_a_gpu_it_says_so(graphopt: Cli, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    for rest in ((), ("--layers",), ("--suite", "zoo", "--json")):
        result = graphopt("bench", *([tiny] if rest[-1:] != ("--json",) else []), "--target", "cuda", *rest)
        assert result.code == 1
        assert result.one_sentence, result.err
        assert "--target cuda is timed on a device" in result.err
        assert "pip install 'graphopt[cuda]'" in result.err
        assert result.out == ""


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--target", "vulkan"), "--target vulkan is unknown; choose one of llvm, cuda, opencl"),
        (("--batch", "4"), "--batch goes with models of the zoo"),
    ],
)
def test_what_cannot_be_asked_for(graphopt: Cli, tiny: Path, arguments: tuple[str, ...], sentence: str) -> None:
    result = graphopt("bench", tiny, *arguments)
    assert result.code == 1
    assert result.one_sentence, result.err
    assert sentence in result.err


def test_the_document_names_its_command(graphopt: Cli, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from graphopt.bench import suite

    monkeypatch.setattr(sys, "argv", ["graphopt", "bench", "a model.onnx", "--json"])
    monkeypatch.setattr(suite, "_row", lambda model, *_: {"model": model, "error": "no"})
    document = graphopt("bench", tiny, "--json").document
    assert document["command"] == "graphopt bench 'a model.onnx' --json"
    assert document["date"].count("-") == 2
    assert document["environment"]["versions"]["onnxruntime"]


def test_sparse_layers_are_timed_beside_dense_ones(graphopt: Cli) -> None:
    name = "zoo:sparse/96x64-m5-b16x1-s90"
    result = graphopt("bench", name, "--peer", "dense", "--peer", "onnxruntime", "--runs", 2, "--json")
    assert result.code == 0
    (row,) = result.document["models"]
    assert row["equal"]
    assert set(row["ratios"]) == {"dense", "onnxruntime"}


def test_an_unknown_peer(graphopt: Cli) -> None:
    result = graphopt("bench", "zoo:lenet-digits", "--peer", "tensorrt")
    assert result.code == 2
    assert "'tensorrt' is not one of onnxruntime, torch," in result.err
