"""`graphopt plan`."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from graphopt.artifact import open_artifact
from tests.helpers import skips

Cli = Callable[..., Any]


@pytest.fixture
def waiting(kernels: bytes, tmp_path: Path) -> Path:
    """Values that wait for their last reader."""
    return skips.artifact(kernels, 8).save(tmp_path / "skips.gopt")


def test_the_account_of_an_artifact(graphopt: Cli, compiled: Path) -> None:
    result = graphopt("plan", compiled)
    assert (result.code, result.err) == (0, "")
    for words in ("weights", "always", "times the lower bound", "Live at the peak: step"):
        assert words in result.out
    document = graphopt("plan", compiled, "--json").document
    (stage,) = document["stages"]
    assert stage["total"] == stage["arena"] + sum(stage["held"].values())
    assert sum(each["bytes"] for each in stage["peak"]["live"]) == stage["lower_bound"]
    assert document["plans"] == []


def test_a_model_is_compiled(graphopt: Cli, tiny: Path) -> None:
    assert graphopt("plan", tiny, "--json").document["stages"][0]["arena"] > 0


def test_a_budget_holds_and_is_written(graphopt: Cli, waiting: Path, tmp_path: Path) -> None:
    file, drawing = tmp_path / "small.gopt", tmp_path / "memory.svg"
    result = graphopt("plan", waiting, "--memory-budget", "24.5kB", "-o", file, "--svg", drawing, "--costs", "roofline")
    assert (result.code, result.err) == (0, "")
    assert "Within 23.9 KiB; seconds of calls are estimated" in result.out
    assert open_artifact(file).program.stages[0].arena_bytes <= 24_500
    ElementTree.parse(drawing)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["memory.svg", "skips.gopt", "small.gopt"]
    again = graphopt("plan", file, "--json").document
    assert again["stages"][0]["repeated_calls"] > 0


def test_seconds_are_measured_unless_costs_are_estimates(
    graphopt: Cli, waiting: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAPHOPT_COSTS", "measured")
    document = graphopt("plan", waiting, "--memory-budget", "30kB", "--threads", 1, "--json").document
    assert document["seconds"] == "measured on this machine"
    assert document["plans"][0]["total"] <= 30_000
    assert document["plans"][0]["overhead"] > 0


def test_a_sweep(graphopt: Cli, waiting: Path, tmp_path: Path) -> None:
    result = graphopt("plan", waiting, "--sweep", "--svg", tmp_path / "front.svg", "--json")
    points = result.document["points"]
    assert [each["total"] for each in points] == sorted({each["total"] for each in points}, reverse=True)
    assert points[0]["slowdown"] == 1.0 < points[-1]["slowdown"]
    ElementTree.parse(tmp_path / "front.svg")


def test_too_small_a_budget_leaves_nothing_behind(graphopt: Cli, waiting: Path, tmp_path: Path) -> None:
    result = graphopt("plan", waiting, "--memory-budget", "4KiB", "-o", tmp_path / "out.gopt")
    assert (result.code, result.out) == (1, "")
    assert result.one_sentence
    assert "the least found is" in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["skips.gopt"]


@pytest.mark.parametrize("size", ["", "x", "-1", "0", "1iB", "10 parsecs", "nan", "1e9", "0.2"])
def test_sizes_that_are_none(graphopt: Cli, waiting: Path, size: str) -> None:
    result = graphopt("plan", waiting, "--memory-budget", size)
    assert result.code == 2
    assert result.one_sentence


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--sweep", "--memory-budget", "1MiB"), "give one of both"),
        (("--sweep", "-o", "a.gopt"), "-o writes one program"),
        (("--shapes", "x:1x2"), "its shapes are fixed"),
        (("--svg", "here.gopt", "-o", "here.gopt"), "is what --svg names too"),
        (("--svg", "."), "is a folder"),
    ],
)
def test_options_that_do_not_go_together(
    graphopt: Cli, waiting: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = graphopt("plan", waiting, *options)
    assert (result.code, result.out) == (1, "")
    assert result.one_sentence
    assert reason in result.err


def test_what_is_neither_a_model_nor_an_artifact(graphopt: Cli, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no model")
    for name in ("notes.txt", "absent.gopt", "."):
        result = graphopt("plan", tmp_path / name)
        assert (result.code, result.out) == (1, "")
        assert result.one_sentence
