"""`graphopt cache`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRAPHOPT_CODE_CACHE", str(tmp_path / "code"))
    return tmp_path / "code"


def test_an_empty_cache(graphopt: Cli, folder: Path) -> None:
    document = graphopt("cache", "--json").document
    assert [(each["name"], each["files"], each["bytes"]) for each in document["caches"]] == [
        ("objects", 0, 0),
        ("libraries", 0, 0),
    ]
    assert all(each["limit"] > 0 for each in document["caches"])
    assert not folder.exists()


def test_compiling_fills_it_and_clearing_empties_it(graphopt: Cli, tiny: Path, tmp_path: Path, folder: Path) -> None:
    first, second = tmp_path / "a.gopt", tmp_path / "b.gopt"
    assert graphopt("compile", tiny, "-o", first).code == 0
    objects = graphopt("cache", "--json").document["caches"][0]
    assert objects["files"] == len(list((folder / "objects").iterdir())) > 0
    assert objects["bytes"] == sum(path.stat().st_size for path in (folder / "objects").iterdir())
    assert str(folder / "objects") in graphopt("cache").out
    cleared = graphopt("cache", "--clear", "--json").document
    assert (cleared["cleared"], cleared["caches"][0]["files"]) == (True, objects["files"])
    assert list((folder / "objects").iterdir()) == []
    assert graphopt("compile", tiny, "-o", second).code == 0
    assert first.read_bytes() == second.read_bytes()


def test_no_cache_reads_and_keeps_nothing(graphopt: Cli, tiny: Path, tmp_path: Path, folder: Path) -> None:
    assert graphopt("compile", tiny, "-o", tmp_path / "t.gopt", "--no-cache").code == 0
    assert not (folder / "objects").exists()
