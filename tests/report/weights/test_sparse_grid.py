"""Layers with sparse weights as a grid."""

from __future__ import annotations

from typing import Any

from graphopt.report.document import plain
from graphopt.report.weights.sparse_grid import grid


def row(shape: str, block: str, percent: int, **more: Any) -> dict[str, Any]:
    ratios = {"dense": {"value": 1 / (percent / 10)}, "onnxruntime": {"value": 0.05}}
    layer = {"shape": shape, "block": block, "percent": percent}
    return {"model": f"zoo:{shape}", "layer": layer, "error": None, "equal": True, "ratios": ratios, **more}


def document(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"models": list(rows), "geometric_mean": {"dense": None, "onnxruntime": None}}


def test_grid() -> None:
    rows = [row(shape, block, percent) for shape in ("a", "b") for block in ("16x1", "4x1") for percent in (90, 15)]
    rows[1] = row("a", "16x1", 15, error="no")
    rows[2] = row("a", "4x1", 90, equal=False)
    rows[3] = row("a", "4x1", 15, ratios={"dense": {"value": 0.5}})
    table = grid(document(*rows[:-1]))
    assert table is not None
    assert plain([table]).splitlines() == [
        "Times that dense / onnxruntime take, by the share of blocks, or inputs, that are zero",
        "layer  block       15 %      90 %",
        "a      16x1      failed  9.0 / 20",
        "a      4x1      2.0 / -     wrong",
        "b      16x1   1.50 / 20  9.0 / 20",
        "b      4x1            -  9.0 / 20",
    ]


def test_other_models_make_no_grid() -> None:
    rows = [row("a", "16x1", percent) for percent in range(1, 9)]
    assert grid(document(*rows)) is not None
    assert grid(document(*rows[:3])) is None
    assert grid(document(*rows, {"model": "zoo:mlp", "error": None, "equal": True, "ratios": {}})) is None
