"""`graphopt bench --layers`: the shape of the answer, a drawing, wrong usage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as tree

import pytest

Cli = Callable[..., Any]


@pytest.mark.slow
def test_layers_and_roofline(graphopt: Cli, tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "roof.svg"
    result = graphopt("bench", tiny, "--layers", "--roofline", file, "--threads", 1, "--runs", 3, "--json")
    assert result.code == 0
    document = result.document
    assert document["peak"]["flops"] > 0
    assert document["peak"]["bandwidth"] > 0
    assert any(row["algorithm"] for row in document["kernels"])
    assert all(row["seconds"] > 0 and row["bound"] in ("arithmetic", "memory") for row in document["kernels"])
    assert tree.parse(file).getroot().tag.endswith("svg")
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("rest", [(), ("--suite", "gemm"), ("b.onnx",), ("a.onnx", "--peer", "torch")])
def test_layers_take_one_model(graphopt: Cli, rest: tuple[str, ...]) -> None:
    result = graphopt("bench", "--layers", *(rest if rest != ("b.onnx",) else ("a.onnx", "b.onnx")))
    assert result.code == 2
    assert "one MODEL" in result.err
