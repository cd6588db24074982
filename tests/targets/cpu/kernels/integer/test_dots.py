"""Which instructions multiply quantized factors, on every level; code for other processors is generated only."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from graphopt.targets.cpu import build
from graphopt.targets.cpu.kernels.integer import dots
from graphopt.targets.cpu.machine import LEVELS, CpuMachine
from graphopt.targets.cpu.target import CpuTarget

WORDS = {
    "avx512vnni": r"vpdpwssd\s.*%zmm",
    "avx512": r"vpmaddwd\s.*%zmm",
    "avx2vnni": r"vpdpwssd\s.*%ymm",
    "avx2": r"vpmaddwd\s.*%ymm",
    "x86-64": r"\bpmaddwd\s.*%xmm",
}
BYTES = WORDS | {
    "avx512vnni": r"vpdpbusd\s.*%zmm",
    "avx512": r"vpmaddubsw\s.*%zmm",
    "avx2vnni": r"vpdpbusd\s.*%ymm",
    "avx2": r"vpmaddubsw\s.*%ymm",
}


@pytest.mark.parametrize("level", LEVELS)
def test_bytes_are_multiplied_as_bytes_where_that_is_exact(level: str) -> None:
    machine = CpuMachine(LEVELS[level], 1)
    small, large = np.array([[-64, 64]], np.int8), np.array([[-65, 0]], np.int8)
    vectors, vnni = machine.level.vector_bytes > 16, "vnni" in level
    assert dots.unit(machine, small, "int8") == (dots.BYTES if vectors else dots.WORDS)
    assert dots.unit(machine, large, "int8") == (dots.BYTES if vnni else dots.WORDS)
    assert dots.unit(machine, None, "int8") == (dots.BYTES if vnni else dots.WORDS)
    assert dots.unit(machine, small.view(np.uint8), "uint8") == dots.WORDS


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_instructions(lab: Any, level: str, dtype: str) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 9, (30, 64)).astype(np.uint8), rng.integers(0, 9, (64, 48)).astype(dtype)
    x, w = rng.integers(0, 9, (1, 16, 6, 32)).astype(np.uint8), rng.integers(0, 9, (24, 16, 3, 3)).astype(dtype)
    one, zero, center = np.array(0.1, np.float32), np.array(0, dtype), np.array(7, np.uint8)
    body = "y = MatMulInteger(a, b) z = QLinearConv(x, one, center, w, one, zero, one, center)"
    constants = {"b": b, "w": w, "one": one, "center": center, "zero": zero}
    target = CpuTarget(level)
    model = lab.model(body, {"a": a, "x": x}, constants, outputs=("y", "z"))
    graph = model.graph
    lowered = target.lower(list(graph), list(graph.inputs), list(graph.outputs), model.opset_imports, "s_")
    assert not lowered.notes
    code = build.compile_functions(lowered.functions, target.cpu).mod.inspect_source("asm")
    wanted = (BYTES if dtype == "int8" else WORDS)[level]
    assert sum(bool(re.search(wanted, line)) for line in code.splitlines()) >= 16
