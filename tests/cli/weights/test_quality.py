"""`--eval` of commands that change a model's numbers: the rows, the plot, and limits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt.models.samples import digits

Cli = Callable[..., Any]

COMMANDS = {
    "compress": ["--bits", "5", "-o"],
    "compile": ["--costs", "roofline", "--lossy-energy", "0.9", "-o"],
    "prune": ["--sparsity", "0.3", "-o"],
}
ENDINGS = {"compress": "gopz", "compile": "gopt", "prune": "onnx"}


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty digits and their labels."""
    images, labels = digits()
    path = tmp_path_factory.mktemp("samples") / "digits.npz"
    np.savez(path, image=images[:60], labels=labels[:60])
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_rows_and_plot(graphopt: Cli, samples: Path, tmp_path: Path, command: str) -> None:
    output, plot = tmp_path / f"m.{ENDINGS[command]}", tmp_path / "scores.svg"
    result = graphopt(
        command, "zoo:lenet-digits", *COMMANDS[command], output, "--eval", samples, "--svg", plot, "--json"
    )
    assert (result.code, result.err) == (0, "")
    assert result.document["quality"]["samples"] == 60
    assert result.document["quality"]["dense"]["top1"] > 0.95
    assert plot.read_text().startswith("<svg")
    assert sorted(path.name for path in tmp_path.iterdir()) == [output.name, plot.name]


@pytest.mark.parametrize("command", ["compress", "prune"])
@pytest.mark.parametrize("limit", ["--max-kl", "--max-flip"])
def test_beyond_a_limit_nothing_is_written(
    graphopt: Cli, samples: Path, tmp_path: Path, command: str, limit: str
) -> None:
    arguments = ["--sparsity", "0.9", "-o"] if command == "prune" else COMMANDS[command]
    output = tmp_path / f"m.{ENDINGS[command]}"
    result = graphopt(command, "zoo:lenet-digits", *arguments, output, "--eval", samples, limit, "0")
    assert result.code == 1
    assert f"above {limit} 0: change less; nothing was written" in result.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("option", [("--max-kl", "0.1"), ("--max-flip", "0.1"), ("--eval-output", "logits")])
def test_limits_need_samples(graphopt: Cli, tmp_path: Path, command: str, option: tuple[str, str]) -> None:
    output = tmp_path / f"m.{ENDINGS[command]}"
    result = graphopt(command, "zoo:lenet-digits", *COMMANDS[command], output, *option)
    assert result.code == 1
    assert f"{option[0]} needs samples to compare the models on; give --eval FILE.npz too" in result.err
    assert not list(tmp_path.iterdir())


def test_no_bfloat16(graphopt: Cli, samples: Path, tmp_path: Path) -> None:
    arguments = ["--precision", "bf16", "--eval", samples, "-o", tmp_path / "m.gopt"]
    result = graphopt("compile", "zoo:lenet-digits", *arguments)
    assert result.code == 1
    assert "--eval runs the rewritten model in ONNX Runtime, which computes no bfloat16" in result.err
    assert not list(tmp_path.iterdir())
