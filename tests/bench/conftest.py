"""A small model on disk."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.parser
import pytest

TEXT = (
    '<ir_version: 8, opset_import: ["": 18]> small (float[4, 8] x) => (float[4, 8] y) { r = Relu (x) y = Add (r, x) }'
)


@pytest.fixture
def write_small(tmp_path: Path) -> Path:
    """x + relu(x)."""
    path = tmp_path / "small.onnx"
    onnx.save(onnx.parser.parse_model(TEXT), path)
    return path
