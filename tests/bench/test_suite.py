"""Many models: suites, crashes as rows, the table."""

from __future__ import annotations

import signal
import sys
from typing import Any

import pytest

from graphopt.bench import suite
from graphopt.report import benchmark
from graphopt.report.document import Table, plain


def test_suites_name_models_of_the_zoo() -> None:
    from graphopt import models

    found = [name.removeprefix("zoo:") for each in suite.SUITES for name in suite.suite(each)]
    assert sorted(found) == sorted(models.names())
    assert len(suite.suite("light")) == 9


def test_a_crash_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    crash = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    original = suite.subprocess.Popen  # type: ignore[attr-defined]
    monkeypatch.setattr(suite.subprocess, "Popen", lambda _, **rest: original([sys.executable, "-c", crash], **rest))  # type: ignore[attr-defined]
    document = suite.run(["a.onnx", "b.onnx"], 1)
    assert [row["model"] for row in document["models"]] == ["a.onnx", "b.onnx"]
    assert all(signal.SIGSEGV.name in row["error"] for row in document["models"])
    assert document["geometric_mean"] == {"onnxruntime": None}
    assert benchmark.failed(document)


def _row(model: str, equal: bool = True) -> dict[str, Any]:
    side = {"value": 0.004, "low": 0.0039, "high": 0.0041, "runs": 60, "peak_bytes": 5 << 20}
    ratio = {"value": 1.25, "low": 1.2, "high": 1.3, "log_deviation": 0.02}
    return {
        "model": model,
        "compile_seconds": 3.21,
        "fallback_nodes": 0,
        "equal": equal,
        "mismatch": None if equal else "output y is wrong",
        "sides": {"graphopt": side, "onnxruntime": {**side, "peak_bytes": None}},
        "ratios": {"onnxruntime": ratio},
        "quiet": True,
        "error": None,
    }


def test_the_table() -> None:
    document = {
        "threads": 2,
        "environment": suite.environment(),
        "models": [_row("zoo:net"), _row("zoo:odd", equal=False), {"model": "x.onnx", "error": "x.onnx is cut"}],
        "geometric_mean": {"onnxruntime": {"value": 1.25, "low": 1.2, "high": 1.3}},
    }
    blocks = benchmark.blocks(document)
    table = blocks[0]
    assert isinstance(table, Table)
    assert table.rows[0] == (
        "net", "4.00 [3.90, 4.10]", "4.00 [3.90, 4.10]", "1.25 [1.20, 1.30]", "3.2", "5 / -", "0", "yes",
    )  # fmt: skip
    assert {len(row) for row in table.rows} == {len(table.columns)}
    assert table.rows[-1][3] == "1.25 [1.20, 1.30]"
    text = plain(blocks)
    assert "x.onnx is cut" in text
    assert "output y is wrong" in text
    assert benchmark.failed(document)
    assert not benchmark.failed({"models": [_row("zoo:net")]})
