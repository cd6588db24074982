"""`graphopt report`."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]


def test_contents(graphopt: Cli, compiled: Path) -> None:
    result = graphopt("report", compiled)
    assert (result.code, result.err) == (0, "")
    for words in ("llvm", "float32, 1x16x8x8", "Stages", "Algorithms", "stage 0: arena", "weights_0.safetensors"):
        assert words in result.out
    assert "\x1b" not in result.out
    assert result.out.isascii()


def test_json_holds_the_memory_plan(graphopt: Cli, compiled: Path) -> None:
    document = graphopt("report", compiled, "--json").document
    stage = document["stages"][0]
    assert stage["arena"] == max(item["offset"] + item["bytes"] for item in stage["plan"])
    assert {item["value"] for item in stage["plan"]} >= {"x", "y"}
    assert document["outputs"] == [{"name": "y", "dtype": "float32", "shape": [1, 16, 8, 8]}]


def test_svg(graphopt: Cli, compiled: Path, tmp_path: Path) -> None:
    assert graphopt("report", compiled, "--svg", tmp_path / "plan.svg").code == 0
    root = ElementTree.parse(tmp_path / "plan.svg").getroot()
    titles = [each.text or "" for each in root.iter("{http://www.w3.org/2000/svg}title")]
    assert any(title.startswith("x: 4.00 KiB at ") for title in titles)
    assert [path.name for path in tmp_path.iterdir()] == ["plan.svg"]


def test_two_stages_show_the_grid(graphopt: Cli, tiny: Path, tmp_path: Path) -> None:
    assert graphopt("compile", tiny, "-o", tmp_path / "t.gopt", "--ranks", 2).code == 0
    assert "0SEND0>1" in graphopt("report", tmp_path / "t.gopt").out


def test_no_artifact(graphopt: Cli, tiny: Path, tmp_path: Path) -> None:
    for path in (tiny, tmp_path, tmp_path / "none.gopt"):
        result = graphopt("report", path, "--svg", tmp_path / "plan.svg")
        assert result.code == 1
        assert result.one_sentence
        assert path.name in result.err
    assert not (tmp_path / "plan.svg").exists()


def test_svg_is_a_folder(graphopt: Cli, compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = graphopt("report", compiled, "--svg", ".")
    assert (result.code, result.out) == (1, "")
    assert result.err == "graphopt: --svg . is a folder; name a file\n"
    assert list(tmp_path.iterdir()) == []


def test_svg_cannot_be_written(graphopt: Cli, compiled: Path, tmp_path: Path) -> None:
    result = graphopt("report", compiled, "--svg", tmp_path / ("n" * 300))
    assert result.code == 1
    assert result.one_sentence
    assert "File name too long" in result.err
    assert list(tmp_path.iterdir()) == []
