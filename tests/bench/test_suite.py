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
    from graphopt.models import zoo

    on_host, on_device = ({each: suite.suite(each, device) for each in suite.SUITES} for device in (False, True))
    sparse = on_host.pop("sparse")
    assert sparse == on_device.pop("sparse")
    assert all(models.describe(name.removeprefix("zoo:")).family == "sparse" for name in sparse)
    found = {name for suites in (on_host, on_device) for each in suites.values() for name in each}
    steps = {f"zoo:{task.name}" for task in zoo.TASKS}
    assert set(on_host["train"]) == steps
    assert {name.removeprefix("zoo:") for name in found - steps} == set(models.names())
    assert len(on_host["light"]) == 9
    assert on_host.pop("gemm") == ["zoo:layer/gemm-1024"]
    assert on_device.pop("gemm") == ["zoo:layer/gemm-4096", "zoo:layer/gemm-4096-fp16"]
    assert on_host == on_device


def test_a_crash_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    crash = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    original = suite.subprocess.Popen  # type: ignore[attr-defined]
    monkeypatch.setattr(
        suite.subprocess, "Popen", lambda _, **rest: original([sys.executable, "-P", "-c", crash], **rest)
    )  # type: ignore[attr-defined]
    document = suite.run(["a.onnx", "b.onnx"], 1)
    assert [row["model"] for row in document["models"]] == ["a.onnx", "b.onnx"]
    assert all(signal.SIGSEGV.name in row["error"] for row in document["models"])
    assert document["geometric_mean"] == {"onnxruntime": None}
    assert benchmark.failed(document)


def _row(model: str, equal: bool = True) -> dict[str, Any]:
    side = {
        "value": 0.004,
        "low": 0.0039,
        "high": 0.0041,
        "runs": 60,
        "peak_bytes": 5 << 20,
        "relative_error": None,
        "compile_seconds": 3.21,
    }
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


def test_an_output_that_cannot_be_compared_is_no_yes() -> None:
    document = {
        "threads": 2,
        "environment": suite.environment(),
        "models": [_row("zoo:net"), _row("zoo:chaos") | {"unstable": ["audio"]}],
        "geometric_mean": {"onnxruntime": {"value": 1.25, "low": 1.2, "high": 1.3, "models": 2}},
    }
    table, *rest = benchmark.blocks(document)
    assert isinstance(table, Table)
    assert [row[-1] for row in table.rows[:2]] == ["yes", "unstable"]
    assert "audio" in plain(rest)
    assert not benchmark.failed(document)


def test_the_table() -> None:
    document = {
        "threads": 2,
        "environment": suite.environment(),
        "models": [_row("zoo:net"), _row("zoo:odd", equal=False), {"model": "x.onnx", "error": "x.onnx is cut"}],
        "geometric_mean": {"onnxruntime": {"value": 1.25, "low": 1.2, "high": 1.3, "models": 2}},
    }
    blocks = benchmark.blocks(document)
    table = blocks[0]
    assert isinstance(table, Table)
    assert table.rows[0] == (
        "net", "4.00 [3.90, 4.10]", "4.00 [3.90, 4.10]", "1.25 [1.20, 1.30]", "3.2 / 3.2", "5 / -", "0", "yes",
    )  # fmt: skip
    assert {len(row) for row in table.rows} == {len(table.columns)}
    assert table.rows[-1][3] == "1.25 [1.20, 1.30]"
    text = plain(blocks)
    assert "x.onnx is cut" in text
    assert "output y is wrong" in text
    assert benchmark.failed(document)
    assert not benchmark.failed({"models": [_row("zoo:net")]})


def test_a_peer_that_fails_is_a_row_and_not_in_the_mean() -> None:
    failing = _row("zoo:odd")
    failing["sides"]["torch"] = dict(failing["sides"]["onnxruntime"])
    failing["ratios"]["torch"] = failing["ratios"]["onnxruntime"]
    good = _row("zoo:net")
    good["failures"] = {"torch": "no function for the operator LSTM"}
    mean = {"value": 1.25, "low": 1.2, "high": 1.3}
    document = {
        "threads": 2,
        "environment": suite.environment(),
        "models": [good, failing],
        "geometric_mean": {"onnxruntime": {**mean, "models": 2}, "torch": {**mean, "models": 1}},
    }
    blocks = benchmark.blocks(document)
    table, failed = blocks[0], blocks[1]
    assert isinstance(table, Table)
    assert isinstance(failed, Table)
    assert "failed" in table.rows[0]
    assert table.rows[-1][4:6] == ("1.25 [1.20, 1.30]", "1.25 [1.20, 1.30] of 1")
    assert failed.rows == (("zoo:net", "torch", "no function for the operator LSTM"),)
    assert not benchmark.failed(document)  # graphopt ran


def test_layers_show_their_error() -> None:
    row = _row("zoo:layer/gemm-1024")
    row["sides"]["graphopt"] = {**row["sides"]["graphopt"], "relative_error": 2.5e-7}
    mean = {"onnxruntime": None}
    document = {"threads": 2, "environment": suite.environment(), "models": [row], "geometric_mean": mean}
    table = benchmark.blocks(document)[0]
    assert isinstance(table, Table)
    assert table.rows[0][table.columns.index("error")] == "2.5e-07 / -"
    assert "float64" in plain(benchmark.blocks(document))


def test_other_precisions_show_their_error() -> None:
    row = _row("zoo:net")
    row["sides"]["graphopt"]["largest_error"] = 3e-3
    document = {
        "precision": "fp16",
        "threads": 2,
        "environment": {**suite.environment(), "device": {"name": "A GPU", "driver": "580.1", "cuda": "13.0"}},
        "models": [row],
        "geometric_mean": {"onnxruntime": None},
    }
    table = benchmark.blocks(document)[0]
    assert isinstance(table, Table)
    assert table.rows[0][table.columns.index("error")].startswith("3.0e-03 / ")
    text = plain(benchmark.blocks(document))
    assert "A GPU (driver 580.1, cuda 13.0), fp16; graphopt" in text
    assert "against ONNX Runtime on the CPU" in text
    assert "memory on the device" in text


def test_packages_that_are_not_installed_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    def version(name: str) -> str:
        if name in ("graphopt", "onnxruntime"):
            raise metadata.PackageNotFoundError
        return "1.0"

    monkeypatch.setattr(suite.metadata, "version", version)  # type: ignore[attr-defined]
    assert suite.environment()["versions"] == {
        "graphopt": suite.VERSION, "apache-tvm": "1.0", "torch": "1.0", "numpy": "1.0",
    }  # fmt: skip
