"""`graphopt tune`, where there is nothing to time kernels on; `tests/test_tune.py` has the search."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from graphopt.errors import GraphoptError

Cli = Callable[..., Any]


def test_without_the_gpu(graphopt: Cli, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str, arch: str | None = None) -> Any:
        raise GraphoptError("there is no NVIDIA driver here; install it, or run this on a machine with a GPU")

    monkeypatch.setattr("graphopt.targets.gpu.target.open_any", absent)
    result = graphopt("tune", tiny, "--target", "cuda", "--level", "a100")
    assert result.code == 1
    assert result.one_sentence
    assert "nothing can be tuned here: there is no NVIDIA driver here" in result.err


def test_on_another_gpu(graphopt: Cli, tiny: Path, driver: Any) -> None:
    result = graphopt("tune", tiny, "--target", "cuda", "--level", "a100")
    assert result.code == 1
    assert result.one_sentence
    assert "Paper GPU is no sm_80" in result.err


def test_a_level_that_does_not_exist(graphopt: Cli, tiny: Path) -> None:
    result = graphopt("tune", tiny, "--target", "cuda", "--level", "k80")
    assert result.one_sentence
    assert "--level k80 is no GPU that is described here" in result.err
