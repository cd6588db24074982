"""The digest of the sources belongs to the code that runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from graphopt import disk_cache
from graphopt.targets.common import sources
from graphopt.targets.cpu.target import CpuTarget


def test_a_file_edited_after_the_import_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "kernels").mkdir()
    for name in ("a.py", "kernels/b.py"):
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (1000, 1000))
    assert sources.unchanged(tmp_path, 1001.0)
    os.utime(tmp_path / "kernels/b.py", (1002, 1002))
    assert not sources.unchanged(tmp_path, 1001.0)


def test_what_edited_sources_compile_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(disk_cache.VARIABLE, str(tmp_path))
    monkeypatch.setattr(sources, "unchanged", lambda: True)
    assert CpuTarget(cache=True)._builder._cache is not None
    monkeypatch.setattr(sources, "unchanged", lambda: False)
    assert CpuTarget(cache=True)._builder._cache is None
