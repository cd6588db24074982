"""Kernels of a model: what each computes counts once, shares follow from the peaks."""

from __future__ import annotations

from pathlib import Path

import pytest

from graphopt.bench import layers
from graphopt.compiler import compile_model

PEAK = {"flops": 1e11, "bandwidth": 1e10}


def test_rows_follow_the_program(write_small: Path) -> None:
    compiled = compile_model(str(write_small), threads=1)
    calls = [c for stage in compiled.artifact.program.stages for each in stage.segments for c in each.calls]  # type: ignore[union-attr]
    nodes = {node for call in calls for node in call.origin}
    rows = layers.rows(compiled.artifact, [1e-6] * len(calls), dict.fromkeys(nodes, 100), PEAK)
    assert [row["kernel"] for row in rows] == [call.symbol for call in calls]
    assert sum(row["flops"] for row in rows) == 100 * len(nodes)  # none twice
    for row in rows:
        assert row["bytes"] > 0
        time = max(row["bytes"] / PEAK["bandwidth"], row["flops"] / PEAK["flops"])
        assert row["share_of_peak"] == pytest.approx(time / 1e-6)
        assert row["bound"] == ("arithmetic" if row["flops"] / 1e11 > row["bytes"] / 1e10 else "memory")


def test_an_error_stands_where_the_operations_do(write_small: Path) -> None:
    compiled = compile_model(str(write_small), threads=1)
    calls = [c for stage in compiled.artifact.program.stages for each in stage.segments for c in each.calls]  # type: ignore[union-attr]
    seconds = [1e-6] * len(calls)
    assert all(row["error"] is None for row in layers.rows(compiled.artifact, seconds, {}, PEAK))
    node = calls[0].origin[0]
    rows = layers.rows(compiled.artifact, seconds, {node: 100}, PEAK, {node: 2e-7})
    assert [row["error"] for row in rows] == [2e-7 if row["flops"] else None for row in rows]
    assert [row["error"] for row in rows].count(2e-7) == 1


def test_the_copy_has_a_bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "_COPY_BYTES", 1 << 20)
    assert layers.bandwidth(2) > 0
