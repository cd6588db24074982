"""`graphopt demo`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]


@pytest.mark.slow
def test_every_step_passes_and_nothing_stays(graphopt: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    result = graphopt("demo", "--json")
    assert result.code == 0, result.err
    steps = result.document["steps"]
    assert list(steps) == ["digits", "compile", "run", "bench", "ranks"]
    assert steps["digits"]["accuracy"] > 0.95
    assert steps["digits"]["same"] == steps["digits"]["images"]
    assert steps["compile"]["fallbacks"] == 0
    assert steps["ranks"]["bit_equal"]
    assert result.document["seconds"] < 180
    assert list(tmp_path.iterdir()) == []
