"""The peers: names that agree, a machine without a C++ compiler, one model on every side."""

from __future__ import annotations

from pathlib import Path

import pytest

from graphopt.bench import suite
from graphopt.bench.peers import runtimes


def test_every_peer_has_its_name() -> None:
    assert all(runtimes.peer(name).name == name for name in runtimes.PEERS)


def test_without_a_compiler_torch_compile_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_small: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    (row,) = suite.run([str(write_small)], 1, 4, ["torch-compile"])["models"]
    assert row["error"] is None
    assert "C++ compiler" in row["failures"]["torch-compile"]
    assert "torch-compile" not in row["sides"]
    assert "torch-compile" not in row["ratios"]


@pytest.mark.slow
def test_every_peer_runs(write_small: Path) -> None:
    document = suite.run([str(write_small)], 1, 4, list(runtimes.PEERS))
    (row,) = document["models"]
    assert row["failures"] == {}
    assert list(row["sides"]) == ["graphopt", *runtimes.PEERS]
    assert list(row["ratios"]) == list(runtimes.PEERS)
    assert all(side["compile_seconds"] >= 0 for side in row["sides"].values())
    assert all(document["geometric_mean"][name]["models"] == 1 for name in runtimes.PEERS)
