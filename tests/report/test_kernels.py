"""What kernels for a GPU are expected to take: what they read, and the units that they compute on."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx.helper
import onnx.numpy_helper
import onnx.parser
import pytest

from graphopt.compiler import Compilation, compile_model
from graphopt.report import kernels
from graphopt.targets.gpu import devices, waves

LOOK_UP = """
    <ir_version: 10, opset_import: ["": 20]>
    net (int64[2, 7] ids) => (float[2, 7, 64] y) { found = Gather(table, ids)  y = Relu(found) }
"""
PRODUCT = """
    <ir_version: 10, opset_import: ["": 20]>
    net (float[512, 512] x) => (float[512, 512] y) { y = MatMul(x, table) }
"""


def compiled(text: str, shape: tuple[int, ...]) -> Compilation:
    proto = onnx.parser.parse_model(text)
    table = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(table, "table"))
    return compile_model(proto, target="cuda", level="h100", fallback=False)


def rows(made: Compilation, **plan: Any) -> list[dict[str, Any]]:
    """With other facts in the plans."""
    manifest = dict(made.artifact.manifest)
    manifest["kernels"] = {symbol: {**known, **plan} for symbol, known in manifest["kernels"].items()}
    return kernels.rows(dataclasses.replace(made.artifact, manifest=manifest), made.pipeline.model)


def test_a_table_is_read_where_it_is_looked_up() -> None:
    bandwidth = devices.DEVICES["h100"].bandwidth
    small, large = (rows(compiled(LOOK_UP, (size, 64)), seconds=None) for size in (100, 100_000))
    assert [row["seconds"] for row in small] == pytest.approx([row["seconds"] for row in large])
    moved = 2 * 2 * 7 * 64 * 4 + 2 * 7 * 8  # what is taken, what is written, and the indices
    assert sum(row["seconds"] for row in large) == pytest.approx(
        moved / bandwidth / waves.REACHED_BANDWIDTH + waves.LAUNCH, rel=1e-3
    )


def test_arithmetic_is_bound_by_the_units_of_the_plan() -> None:
    made = compiled(PRODUCT, (512, 512))
    (plain,) = rows(made)
    assert (plain["layout"], plain["precision"], plain["bound"]) == ("plain", "float32", "arithmetic")
    (fast,) = rows(made, precision="fp16 mma", layout="blocked 16", seconds=None)
    assert (fast["layout"], fast["precision"], fast["bound"]) == ("blocked 16", "fp16 mma", "memory")
    table = kernels.table(made.artifact, made.pipeline.model)
    assert table is not None
    assert "float32" in table.rows[0]


def test_a_program_for_cpus_has_no_such_rows() -> None:
    made = compile_model("zoo:lenet-digits")
    assert kernels.rows(made.artifact, made.pipeline.model) == []
    assert kernels.table(made.artifact, made.pipeline.model) is None
