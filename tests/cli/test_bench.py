"""`graphopt bench`: never a time, always the shape of the answer."""

from __future__ import annotations

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
