"""Compiling by measured costs, and again by those of the artifact. What is measured is made up here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from graphopt.artifact import open_artifact
from graphopt.compiler import compile_model
from graphopt.cost.workload import Timing, Workload
from graphopt.errors import GraphoptError
from graphopt.targets.cpu.target import CpuTarget


def model(channels: int = 32) -> onnx.ModelProto:
    parsed = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": 20]>
        g (float[1,{channels},14,14] x, float[32,{channels},3,3] w) => (float[1,32,14,14] y)
        {{ y = Conv<pads = [1, 1, 1, 1]>(x, w) }}"""
    )
    weights = np.random.default_rng(0).standard_normal((32, channels, 3, 3)).astype(np.float32)
    del parsed.graph.input[1]
    parsed.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    return parsed


@pytest.fixture
def slow_winograd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A machine on which everything takes a microsecond, and Winograd a second; the works that were measured."""
    asked: list[str] = []

    def measure(
        self: CpuTarget, groups: Sequence[Sequence[tuple[Workload, str]]], progress: object = None
    ) -> list[list[Timing | None]]:
        asked.extend(workload.op_type for group in groups for workload, _ in group)
        seconds = {"Conv2dWinograd": 1.0, "Conv2dBlocked": 1e-6, "ToBlocked": 1e-7, "FromBlocked": 1e-7}
        return [
            [Timing(s, s, s, tile) for workload, tile in group for s in [seconds.get(workload.op_type, 1e-5)]]
            for group in groups
        ]

    monkeypatch.setattr(CpuTarget, "measure", measure)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return asked


def algorithms(artifact: Any) -> list[str]:
    return [choice["algorithm"] for choice in artifact.manifest["choices"]]


def test_measured_costs_decide(slow_winograd: list[str]) -> None:
    assert algorithms(compile_model(model(), costs="measured").artifact) == ["blocked"]
    assert {"Conv2dWinograd", "Conv2dBlocked"} <= set(slow_winograd)
    slow_winograd.clear()
    compile_model(model(), costs="measured")
    assert slow_winograd == []  # the table has them


def test_an_artifact_repeats_its_choices_and_measures_nothing(slow_winograd: list[str], tmp_path: Path) -> None:
    first = compile_model(model(), costs="measured").artifact
    path = first.save(tmp_path / "first.gopt")
    slow_winograd.clear()
    (tmp_path / "graphopt" / "costs.sqlite").unlink()
    again = compile_model(model(), costs=str(path)).artifact
    assert slow_winograd == []
    assert {name: bytes(data) for name, data in again.files.items()} == {
        name: bytes(data) for name, data in open_artifact(path).files.items()
    }
    assert again.manifest["costs"] == first.manifest["costs"] != {}


def test_costs_of_another_model_are_refused(slow_winograd: list[str], tmp_path: Path) -> None:
    path = compile_model(model(), costs="measured").artifact.save(tmp_path / "first.gopt")
    with pytest.raises(GraphoptError, match=r"first\.gopt holds no cost of a Conv2d\w+ on .* leave --costs out"):
        compile_model(model(48), costs=str(path))


def test_costs_of_another_target_are_refused(slow_winograd: list[str], tmp_path: Path) -> None:
    path = compile_model(model(), costs="measured").artifact.save(tmp_path / "first.gopt")
    with pytest.raises(GraphoptError, match="was built for another target"):
        compile_model(model(), costs=str(path), level="x86-64")


def test_neither_a_source_nor_a_file() -> None:
    with pytest.raises(GraphoptError, match="is guess, which is neither measured, roofline nor an artifact"):
        compile_model(model(), costs="guess")


def test_a_machine_that_cannot_run_the_code_estimates_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CpuTarget, "cannot_measure", lambda self: "this processor lacks features of avx512")
    notes = compile_model(model(), costs="measured").notes
    assert "costs are estimates: this processor lacks features of avx512" in notes


def test_an_artifact_built_by_estimates_is_built_by_them_again(tmp_path: Path) -> None:
    first = compile_model(model(), costs="roofline").artifact
    again = compile_model(model(), costs=str(first.save(tmp_path / "a.gopt")))
    assert again.artifact.save(tmp_path / "b.gopt").read_bytes() == (tmp_path / "a.gopt").read_bytes()
