"""`graphopt bisect`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

Cli = Callable[..., Any]


@pytest.fixture
def dumps(graphopt: Cli, tiny: Path, tmp_path: Path) -> Path:
    """The dumps of the tiny model."""
    folder = tmp_path / "dumps"
    assert graphopt("compile", tiny, "-o", tmp_path / "t.gopt", "--dump", folder).code == 0
    return folder


def test_all_is_well_in_one_line(graphopt: Cli, dumps: Path) -> None:
    result = graphopt("bisect", dumps)
    assert (result.code, result.err) == (0, "")
    assert result.out.count("\n") == 1


def test_a_wrong_rewrite_is_found(graphopt: Cli, dumps: Path) -> None:
    wrong = sorted(dumps.glob("*.onnx"))[2]
    model = onnx.load(wrong)
    tensor = model.graph.initializer[0]
    changed = onnx.numpy_helper.to_array(tensor) * np.float32(2)
    tensor.CopyFrom(onnx.numpy_helper.from_array(changed, tensor.name))
    onnx.save(model, wrong)
    result = graphopt("bisect", dumps, "--json")
    assert result.code == 1
    assert result.document["ok"] is False
    assert result.document["dump"] == wrong.name
    assert result.document["node"]


def test_an_empty_folder(graphopt: Cli, tmp_path: Path) -> None:
    result = graphopt("bisect", tmp_path)
    assert result.code == 1
    assert result.one_sentence
    assert "--dump" in result.err


def test_a_damaged_dump_is_named(graphopt: Cli, dumps: Path) -> None:
    damaged = sorted(dumps.glob("*.onnx"))[1]
    damaged.write_bytes(damaged.read_bytes()[:90])
    result = graphopt("bisect", dumps)
    assert result.code == 1
    assert f"the dump {damaged} is damaged; write it again" in result.err


def test_a_missing_dump_is_named(graphopt: Cli, dumps: Path) -> None:
    (dumps / "000_input.onnx").unlink()
    result = graphopt("bisect", dumps)
    assert result.code == 1
    assert f"{dumps} has no dump 000; write them again" in result.err


def test_a_file_is_no_folder_of_dumps(graphopt: Cli, tiny: Path) -> None:
    result = graphopt("bisect", tiny)
    assert result.code == 1
    assert f"{tiny} is a file; name the folder" in result.err
