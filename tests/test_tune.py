"""Tuning against a made-up machine, on which a tile's seconds follow from its spelling."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest

from graphopt.compiler import rewrite
from graphopt.cost.workload import TILE, Timing, Workload
from graphopt.errors import GraphoptError
from graphopt.options import Options
from graphopt.targets.cpu.target import CpuTarget
from graphopt.tune import tune

SPACE = tuple(f"{rows}x{width}" for rows in range(1, 17) for width in (16, 32, 48, 64))


def model() -> onnx.ModelProto:
    parsed = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 20]>
        g (float[24,64] x, float[64,64] w, float[64,96] v) => (float[24,96] y) { h = MatMul(x, w)  y = MatMul(h, v) }"""
    )
    del parsed.graph.input[1:]
    for name, shape in (("w", (64, 64)), ("v", (64, 96))):
        array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        parsed.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return parsed


def seconds(tile: str) -> float:
    if not tile:
        return 9e-6
    rows, width = map(int, tile.split("x"))
    return 1e-6 * (1 + abs(rows - 11) / 4 + abs(width - 48) / 16)


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[int, ...], str]]:
    asked: list[tuple[tuple[int, ...], str]] = []
    drift = [1.0]

    def measure(
        self: CpuTarget, groups: Sequence[Sequence[tuple[Workload, str]]], progress: object = None
    ) -> list[list[Timing | None]]:
        asked.extend((workload.shape, tile) for group in groups for workload, tile in group)
        drift[0] *= 1.1  # the machine gets slower and slower
        return [
            [Timing(s, s * 0.99, s * 1.01, tile) for _, tile in group for s in [seconds(tile) * drift[0]]]
            for group in groups
        ]

    monkeypatch.setattr(CpuTarget, "measure", measure)
    monkeypatch.setattr(
        CpuTarget, "tiles", lambda self, workload: ("", "4x16") if workload.op_type == "MatMul" else ("",)
    )
    monkeypatch.setattr(CpuTarget, "wide_tiles", lambda self, workload: SPACE if workload.op_type == "MatMul" else ())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return asked


def test_compiling_finds_what_tuning_found(measured: list[tuple[tuple[int, ...], str]]) -> None:
    found = list(tune(model(), trials=30, top=1))
    assert [each.nodes for each in found] == [1]
    assert found[0].after.seconds < found[0].before.seconds
    assert found[0].after.tile in SPACE
    tuned = found[0].workload.shape
    measured.clear()
    (marked,) = [
        node for node in rewrite(model(), Options(costs="measured")).model.graph if node.outputs[0].shape == tuned
    ]
    assert marked.metadata_props[TILE] == found[0].after.tile
    assert measured == []


def test_a_search_goes_on_where_it_stopped(measured: list[tuple[tuple[int, ...], str]]) -> None:
    list(tune(model(), trials=16, top=2))
    first = set(measured)
    measured.clear()
    again = list(tune(model(), trials=16, top=2))
    assert len(first & set(measured)) == 2  # only the best tile of each kernel, to compare the others with
    assert [each.tried for each in again] == [34, 34]  # with the two that compiling had measured


def test_drift_of_the_machine_is_taken_out(measured: list[tuple[tuple[int, ...], str]]) -> None:
    (found,) = tune(model(), trials=60, top=1)
    assert found.after.tile in {"11x48", "10x48", "12x48"}


def test_nothing_to_tune(measured: list[tuple[tuple[int, ...], str]]) -> None:
    relu = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]> g (float[2] x) => (float[2] y) {y = Relu(x)}'
    )
    assert list(tune(relu)) == []


def test_a_machine_that_cannot_run_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CpuTarget, "cannot_measure", lambda self: "this processor lacks features of avx512")
    with pytest.raises(GraphoptError, match="nothing can be tuned here: this processor lacks features of avx512"):
        list(tune(model()))
