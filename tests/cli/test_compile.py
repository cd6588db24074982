"""`graphopt compile`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from graphopt.cli.compile import default_name

Cli = Callable[..., Any]

ODD = """
<ir_version: 8, opset_import: ["": 18]>
odd (float[2, 3] x) => (float[2, 3] y, float[n] u)
{
    y = Abs (x)
    [unique] u = Unique (x)
}
"""


def test_summary_and_file(graphopt: Cli, tiny: Path, tmp_path: Path) -> None:
    result = graphopt("compile", tiny, "-o", tmp_path / "t.gopt", "--verify", "each", "--explain")
    assert (result.code, result.err) == (0, "")
    assert (tmp_path / "t.gopt").is_file()
    for words in ("llvm", "native, 0 in ONNX Runtime", "its lower bound", "agree", "Choices", "select-conv"):
        assert words in result.out
    assert "\x1b" not in result.out


def test_json(graphopt: Cli, tiny: Path, tmp_path: Path) -> None:
    document = graphopt("compile", tiny, "-o", tmp_path / "t.gopt", "--json").document
    assert document["file"] == str(tmp_path / "t.gopt")
    assert document["nodes"]["fallback"] == 0
    assert document["memory"]["arena"] >= document["memory"]["lower_bound"] > 0
    assert {"load", "passes", "lower", "build"} <= set(document["seconds"])
    assert len(document["choices"]) == 1
    assert sum(document["algorithms"].values()) == 1


def test_default_name_is_in_this_folder(
    graphopt: Cli, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert graphopt("compile", tiny).code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gopt"]


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("a/b/net.onnx", "net.gopt"),
        ("zoo:light/resnet50", "resnet50.gopt"),
        ("zoo:mlp", "mlp.gopt"),
        ("my net?.onnx", "my_net_.gopt"),
        ("..", "model.gopt"),
    ],
)
def test_default_names(model: str, name: str) -> None:
    assert default_name(model) == name


def test_dump_and_passes(graphopt: Cli, tiny: Path, tmp_path: Path) -> None:
    result = graphopt(
        "compile", tiny, "-o", tmp_path / "t.gopt", "--dump", tmp_path / "d", "--passes", "normalize,fuse", "--json"
    )
    assert result.document["pipeline"] == "normalize,fuse"
    assert sorted(path.name for path in (tmp_path / "d").glob("*.onnx")) == [
        "000_input.onnx",
        "001_normalize.onnx",
        "002_fuse.onnx",
    ]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--target", "abacus"], "--target abacus"),
        (["--passes", "fuze"], "fuse"),
        (["--shapes", "x=3"], "--shapes"),
        (["--shapes", "q:1x2"], "q"),
        (["-o", "/nowhere/at/all.gopt"], "-o /nowhere/at/all.gopt"),
    ],
)
def test_errors_write_nothing(
    graphopt: Cli, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = graphopt("compile", tiny, *flags)
    assert (result.code, result.out) == (1, "")
    assert result.one_sentence
    assert words in result.err
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_model_is_named(graphopt: Cli, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cut.onnx").write_bytes(tiny.read_bytes()[:200])
    result = graphopt("compile", "cut.onnx")
    assert result.code == 1
    assert result.one_sentence
    assert "cut.onnx" in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["cut.onnx"]


def test_fallback_is_grouped_by_reason_and_can_be_refused(
    graphopt: Cli, write_model: Callable[[str, Path], Path], tmp_path: Path
) -> None:
    model = write_model(ODD, tmp_path / "odd.onnx")
    result = graphopt("compile", model, "-o", tmp_path / "o.gopt")
    assert result.code == 0
    assert "Nodes that run in ONNX Runtime" in result.out
    assert "unique" in result.out
    refused = graphopt("compile", model, "-o", tmp_path / "p.gopt", "--no-fallback")
    assert refused.code == 1
    assert "unique" in refused.err
    assert not (tmp_path / "p.gopt").exists()


def test_two_stages(graphopt: Cli, tiny: Path, tmp_path: Path) -> None:
    document = graphopt("compile", tiny, "-o", tmp_path / "t.gopt", "--ranks", "2", "--json").document
    assert document["stages"] == 2


def test_a_full_disk_under_dump(graphopt: Cli, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from graphopt.pipeline import observe

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(observe.ir, "save", full)
    result = graphopt("compile", tiny, "-o", tmp_path / "a.gopt", "--dump", tmp_path / "new" / "dumps")
    assert (result.code, result.out) == (1, "")
    assert result.one_sentence
    assert "dumps cannot be written: No space left on device; free some space" in result.err
    assert list(tmp_path.iterdir()) == []


def test_for_a_gpu_every_kernel_is_explained(graphopt: Cli, tiny: Path, tmp_path: Path) -> None:
    arguments = ("compile", tiny, "--target", "cuda", "--level", "a100", "-o", tmp_path / "t.gopt")
    result = graphopt(*arguments, "--explain")
    assert (result.code, result.err) == (0, "")
    assert "cuda, sm_80, a100" in result.out
    header = next(line for line in result.out.splitlines() if line.startswith("kernel "))
    assert header.split() == [
        "kernel", "nodes", "algorithm", "tile", "layout", "precision", "launches", "predicted", "bound",
    ]  # fmt: skip
    rows = graphopt(*arguments, "--json").document["kernels"]
    assert rows
    assert {row["bound"] for row in rows} <= {"memory", "arithmetic"}
    assert all(0 < row["seconds"] < 1 and row["launches"] >= 1 for row in rows)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--target", "cuda", "--level", "sm_70"), "--level sm_70 is too old: code is generated from sm_80 on"),
        (("--target", "cuda", "--level", "avx2"), "--level avx2 is no GPU that is described here; choose one of a100"),
        (("--target", "opencl", "--level", "a100"), "--level a100 does not go with --target opencl"),
        (("--level", "a100"), "CPU level 'a100' is unknown"),
        (("--target", "metal"), "--target metal is unknown; choose one of llvm, cuda, opencl"),
    ],
)
def test_levels_that_do_not_exist(
    graphopt: Cli, tiny: Path, tmp_path: Path, options: tuple[str, ...], sentence: str
) -> None:
    result = graphopt("compile", tiny, "-o", tmp_path / "t.gopt", *options)
    assert (result.code, result.out) == (1, "")
    assert result.one_sentence
    assert sentence in result.err
    assert not (tmp_path / "t.gopt").exists()


def test_precision_is_reported(graphopt: Cli, tmp_path: Path) -> None:
    arguments = ("compile", "zoo:lenet-digits", "-o", tmp_path / "t.gopt", "--precision", "fp16", "--verify", "ends")
    result = graphopt(*arguments, "--explain")
    assert result.code == 0
    assert "off fp32, of the largest value" in result.out
    assert "casts move" in result.out
    assert 0 < graphopt(*arguments, "--json").document["accuracy"]["logits"] < 1e-2
    assert graphopt(*arguments[:-3], "fp8").code == 2


def test_inputs_of_the_user_are_verified_with(graphopt: Cli, tiny: Path, tmp_path: Path) -> None:
    model = onnx.load(tiny)
    port = model.graph.input[0]
    dims = [dim.dim_value for dim in port.type.tensor_type.shape.dim]
    np.save(tmp_path / "a.npy", np.ones(dims, np.float32))
    np.save(tmp_path / "big.npy", np.ones(dims, ">f4"))
    np.savez(tmp_path / "all.npz", **{port.name: np.ones(dims, np.float32)})
    for text in (f"{port.name}={tmp_path / 'a.npy'}", f"{port.name}={tmp_path / 'big.npy'}", tmp_path / "all.npz"):
        result = graphopt("compile", tiny, "-o", tmp_path / "t.gopt", "--verify", "ends", "--input", text)
        assert (result.code, result.err) == (0, "")
    for flags, problem in (
        (("--input", "x=a.npy"), "--input is for verification; give --verify ends too"),
        (("--verify", "ends", "--input", "nothing"), "is neither NAME=FILE.npy nor FILE.npz"),
        (("--verify", "ends", "--input", f"z={tmp_path / 'a.npy'}"), "--input names 'z', which is no input"),
    ):
        result = graphopt("compile", tiny, "-o", tmp_path / "t.gopt", *flags)
        assert result.code == 1
        assert problem in result.err


def test_what_fails_verification_is_written_only_to_keep_it(
    graphopt: Cli, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from graphopt.runtime.session import Session

    honest = Session.run
    monkeypatch.setattr(Session, "run", lambda *arguments: {k: v + 1 for k, v in honest(*arguments).items()})
    file = tmp_path / "t.gopt"
    result = graphopt("compile", tiny, "-o", file, "--verify", "ends")
    assert result.code == 1
    assert "in the compiled program: output y" in result.err
    assert not file.exists()
    result = graphopt("compile", tiny, "-o", file, "--verify", "ends", "--keep", "--json")
    assert result.code == 1
    assert result.document["failure"].startswith("in the compiled program: output y")
    assert file.is_file()


def test_files_of_another_kind_are_not_replaced(graphopt: Cli, tiny: Path, tmp_path: Path) -> None:
    """An artifact may be, and an empty file."""
    model, image, device = tmp_path / "m.onnx", tmp_path / "x.npz", tmp_path / "fifo"
    shutil.copy(tiny, model)
    np.savez(image, x=np.ones(3))
    os.mkfifo(device)
    for file in (model, image):
        before = file.read_bytes()
        result = graphopt("compile", model, "-o", file)
        assert (result.code, result.one_sentence) == (1, True)
        assert f"-o {file} is a file of another kind" in result.err
        assert file.read_bytes() == before
    assert "is no regular file" in graphopt("compile", model, "-o", device).err
    assert device.is_fifo()
    assert "is a folder" in graphopt("compile", model, "-o", f"{tmp_path}/new/").err

    target, link = tmp_path / "t.gopt", tmp_path / "link.gopt"
    target.touch()
    link.symlink_to(target)
    for file in (target, link):
        assert graphopt("compile", model, "-o", file).code == 0
        assert graphopt("report", target).code == 0
    assert link.is_symlink()
    assert "is a file of another kind" in graphopt("report", target, "--svg", target).err
    assert graphopt("report", target, "--svg", tmp_path / "plan.svg").code == 0
    assert graphopt("report", target, "--svg", tmp_path / "plan.svg").code == 0
