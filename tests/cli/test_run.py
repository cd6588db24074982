"""`graphopt run`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt.runtime.devices.opencl import OpenClDevice

Cli = Callable[..., Any]


@pytest.fixture
def x(tmp_path: Path) -> Path:
    """A feed of the tiny model."""
    path = tmp_path / "x.npy"
    np.save(path, np.random.default_rng(1).standard_normal((1, 16, 8, 8)).astype(np.float32))
    return path


def test_inputs_and_outputs_are_files(graphopt: Cli, compiled: Path, tiny: Path, x: Path, tmp_path: Path) -> None:
    from graphopt.verify.oracle import compare, run_onnxruntime

    result = graphopt("run", compiled, "--input", f"x={x}", "--output", tmp_path / "out", "--threads", 1)
    assert (result.code, result.err) == (0, "")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["y.npy"]
    expected = run_onnxruntime(tiny, {"x": np.load(x)})
    assert compare(expected, {"y": np.load(tmp_path / "out" / "y.npy", allow_pickle=False)}) == []


def test_a_default_value_is_no_input(graphopt: Cli, tmp_path: Path) -> None:
    import onnx

    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[2] x, float[2] w) => (float[2] y) { y = Add(x, w) }'
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(2, np.float32), "w"))
    onnx.save(model, tmp_path / "m.onnx")
    np.save(tmp_path / "w.npy", np.zeros(2, np.float32))
    assert graphopt("compile", tmp_path / "m.onnx", "-o", tmp_path / "m.gopt").code == 0
    result = graphopt("run", tmp_path / "m.gopt", "--random", "--input", f"w={tmp_path / 'w.npy'}")
    assert result.code == 1
    assert "'w' is no input any more: its default value became a constant" in result.err


def test_maps_become_json(tmp_path: Path) -> None:
    import json

    from graphopt.errors import GraphoptError
    from graphopt.runtime import files

    found = files.write(tmp_path, {"p.q": [{0: 0.5, 1: 0.25}, {"a": 1}], "y": np.ones(2)})
    assert {name: path.name for name, path in found.items()} == {"p.q": "p.q.json", "y": "y.npy"}
    assert json.loads(found["p.q"].read_text()) == [{"0": 0.5, "1": 0.25}, {"a": 1}]
    with pytest.raises(GraphoptError, match="output .s. is a list of arrays, which no file holds"):
        files.write(tmp_path, {"s": [np.ones(2)]})


def test_random_is_the_same_for_the_same_seed(graphopt: Cli, compiled: Path) -> None:
    first, again, other = (
        graphopt("run", compiled, "--random", "--json", "--seed", seed).document["outputs"] for seed in (3, 3, 4)
    )
    assert first == again != other
    assert first[0]["name"] == "y"
    assert first[0]["shape"] == [1, 16, 8, 8]


def test_random_integers_are_zero_or_one() -> None:
    from graphopt.cli.feeds import random
    from graphopt.program.program import Port

    ports = (Port("i", "int64", (64,)), Port("b", "bool", (64,)), Port("f", "float16", (2, 3)))
    feeds = random(ports, 2, 0)
    assert set(feeds["i"].tolist()) == {0, 1}
    assert feeds["i"].shape == (128,)
    assert feeds["b"].dtype == np.bool_
    assert feeds["f"].shape == (4, 3)


def test_names_with_slashes_become_files(graphopt: Cli, two_inputs: Path, tmp_path: Path) -> None:
    result = graphopt("run", two_inputs, "--random", "--output", tmp_path / "o", "--json")
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == ["out%2Fy.npy", "z.npy"]
    assert [item["file"] for item in result.document["outputs"]] == [
        str(tmp_path / "o" / "out%2Fy.npy"),
        str(tmp_path / "o" / "z.npy"),
    ]


def test_a_given_input_and_a_random_one(graphopt: Cli, two_inputs: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.full((2, 3), 2, np.float32))
    document = graphopt("run", two_inputs, "--input", f"x={tmp_path / 'x.npy'}", "--random", "--json").document
    assert document["outputs"][1]["max"] == -2


def test_ranks_must_be_the_stages(graphopt: Cli, compiled: Path) -> None:
    result = graphopt("run", compiled, "--random", "--ranks", 2)
    assert result.code == 1
    assert "--ranks 2" in result.err


@pytest.mark.slow
def test_two_ranks_give_the_same_bits(graphopt: Cli, tiny: Path, compiled: Path, x: Path, tmp_path: Path) -> None:
    two = tmp_path / "two.gopt"
    assert graphopt("compile", tiny, "-o", two, "--ranks", 2).code == 0
    for artifact, flags, folder in ((compiled, (), "one"), (two, ("--ranks", 2), "two")):
        given = ("--input", f"x={x}", "--output", tmp_path / folder, "--threads", 1)
        result = graphopt("run", artifact, *given, *flags)
        assert result.code == 0, result.err
    assert (tmp_path / "one" / "y.npy").read_bytes() == (tmp_path / "two" / "y.npy").read_bytes()


def _bad(kind: str, folder: Path) -> Path:
    path = folder / "x.npy"
    if kind == "missing":
        return folder / "none.npy"
    if kind == "text":
        path.write_text("hello")
    elif kind == "pickle":
        np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    elif kind == "shape":
        np.save(path, np.zeros((2, 3), np.float32))
    elif kind == "dtype":
        np.save(path, np.zeros((1, 16, 8, 8), np.float64))
    elif kind == "zip":
        with path.open("wb") as file:
            np.savez(file, x=np.zeros(3))
    elif kind == "cut":
        np.save(path, np.zeros((1, 16, 8, 8), np.float32))
        path.write_bytes(path.read_bytes()[:200])
    elif kind == "huge":
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }"
        path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    return path


@pytest.mark.parametrize("shape", [(-5, 6), (5, 10**40), (True, 6), (-5, -6), "5", "(" * 300, "(5,10**40)", "(2,"])
def test_a_bad_header(graphopt: Cli, compiled: Path, tmp_path: Path, shape: object) -> None:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    path = tmp_path / "x.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(120))
    result = graphopt("run", compiled, "--input", f"x={path}")
    assert (result.code, result.out) == (1, "")
    assert result.one_sentence, result.err
    assert str(path) in result.err
    assert "numpy.save" in result.err
    assert not {"bug", "malformed", "Error"} & set(result.err.replace("(", " ").split())
    assert len(result.err) < 250 + len(str(path))


@pytest.mark.parametrize("kind", ["missing", "text", "pickle", "shape", "dtype", "zip", "cut", "huge"])
def test_bad_inputs(graphopt: Cli, compiled: Path, tmp_path: Path, kind: str) -> None:
    result = graphopt("run", compiled, "--input", f"x={_bad(kind, tmp_path)}", "--output", tmp_path / "out")
    assert (result.code, result.out) == (1, "")
    assert result.one_sentence, result.err
    assert "x" in result.err
    assert not (tmp_path / "out").exists()


def test_an_array_of_objects_is_called_one(graphopt: Cli, compiled: Path, tmp_path: Path) -> None:
    assert "it holds Python objects" in graphopt("run", compiled, "--input", f"x={_bad('pickle', tmp_path)}").err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "--input x=FILE.npy or --random"),
        (["--input", "q=x.npy"], "there are x"),
        (["--input", "x"], "NAME=FILE"),
        (["--input", "x="], "--input x= has an empty path"),
        (["--input", "x=x.npy", "--input", "x=x.npy"], "twice"),
    ],
)
def test_wrong_inputs(
    graphopt: Cli, compiled: Path, x: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], words: str
) -> None:
    monkeypatch.chdir(x.parent)
    result = graphopt("run", compiled, *flags)
    assert result.code == 1
    assert result.one_sentence
    assert words in result.err


def test_a_changed_artifact(graphopt: Cli, compiled: Path, tmp_path: Path) -> None:
    data = bytearray(compiled.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "changed.gopt").write_bytes(data)
    result = graphopt("run", tmp_path / "changed.gopt", "--random", "--output", tmp_path / "out")
    assert result.code == 1
    assert result.one_sentence
    assert not (tmp_path / "out").exists()


def test_the_output_is_no_folder(graphopt: Cli, compiled: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    result = graphopt("run", compiled, "--random", "--output", tmp_path / "file")
    assert result.code == 1
    assert result.one_sentence
    assert (tmp_path / "file").read_text() == "mine"


def test_outputs_on_a_full_disk(graphopt: Cli, compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    result = graphopt("run", compiled, "--random", "--output", tmp_path / "out")
    assert (result.code, result.out) == (1, "")
    assert "y.npy: No space left on device; name another folder" in result.err
    assert list(tmp_path.iterdir()) == []


def test_a_program_for_a_device_names_it(graphopt: Cli, tiny: Path, tmp_path: Path, opencl: OpenClDevice) -> None:
    assert graphopt("compile", tiny, "--target", "opencl", "-o", tmp_path / "tiny.gopt").code == 0
    result = graphopt("run", tmp_path / "tiny.gopt", "--random")
    assert result.code == 0
    assert f"ms on {opencl.name}" in result.out
