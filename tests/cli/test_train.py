"""`graphopt train`: what it prints and writes, what it refuses, and what a kill leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.cli.conftest import Result
from tests.helpers import step_models

Call = Callable[..., Result]


@pytest.fixture(scope="module")
def step(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A step model in a file."""
    path = tmp_path_factory.mktemp("step") / "step.onnx"
    onnx.save(step_models.proto(step_models.softmax()), path)
    return path


def test_it_trains_and_says_so(step: Path, graphopt: Call, tmp_path: Path) -> None:
    out, svg, metrics, run = tmp_path / "t.onnx", tmp_path / "l.svg", tmp_path / "m", tmp_path / "run"
    result = graphopt(
        "train", step, "--data", "digits", "--epochs", 3, "--lr", 0.1, "--engine", "onnxruntime", "-o", out,
        "--svg", svg, "--metrics", metrics, "--checkpoint", run,
    )  # fmt: skip
    assert result.code == 0
    assert [line.split(":")[0] for line in result.err.splitlines()] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert "3 (best)" in result.out
    assert "digits: 8 x 8 pixels in 0..1; 1,437 are trained on" in result.out
    assert "each epoch leaves out 29 samples" in result.out
    assert f"The trained model is in {out}: graphopt compile {out}" in result.out
    assert svg.read_text().startswith("<svg")
    assert len((metrics / "metrics.jsonl").read_text().splitlines()) == 3 * 44 + 3
    assert len(list(metrics.glob("*tfevents*"))) == 1
    assert len(list(run.iterdir())) == 4
    weights = {each.name: onnx.numpy_helper.to_array(each) for each in onnx.load(out).graph.initializer}
    assert np.abs(weights["w"]).max() > 0.1


def test_json(step: Path, graphopt: Call) -> None:
    result = graphopt("train", step, "--data", "digits", "--epochs", 1, "--engine", "onnxruntime", "--json")
    assert (result.document["steps"], result.document["parameters"], result.document["file"]) == (44, 650, None)
    assert result.document["epochs"][0]["accuracy"] > 0.5


def test_data_from_files_and_folders(step: Path, graphopt: Call, tmp_path: Path) -> None:
    train, _ = step_models.digits_data()
    np.savez(tmp_path / "train.npz", x=train["image"][:64], y=train["labels"][:64].astype(np.uint8))
    (tmp_path / "folder").mkdir()
    for name, array in train.items():
        np.save(tmp_path / "folder" / f"{name}.npy", array[:64])
    both = [
        graphopt("train", step, "--data", tmp_path / place, "--epochs", 2, "--engine", "onnxruntime", "--json")
        for place in ("train.npz", "folder")
    ]
    assert both[0].document["epochs"] == both[1].document["epochs"]
    assert both[0].document["samples"] == 64


def test_what_is_refused(step: Path, graphopt: Call, tmp_path: Path) -> None:
    train, _ = step_models.digits_data()
    labels = train["labels"].copy()
    labels[1000] = 11
    np.savez(tmp_path / "bad.npz", image=train["image"], labels=labels)
    np.savez(tmp_path / "wide.npz", image=train["image"].repeat(2, 2), labels=train["labels"])
    (tmp_path / "half.npz").write_bytes((tmp_path / "bad.npz").read_bytes()[:5000])
    (tmp_path / "text.txt").write_text("precious")
    cases: list[tuple[list[object], str]] = [
        (["--data", tmp_path / "bad.npz"], "'labels' holds 11 in sample 1000, and the model has 10 classes"),
        (["--data", tmp_path / "wide.npz"], "'image' has shape [1437, 1, 16, 8], and [samples, 1, 8, 8] is expected"),
        (["--data", tmp_path / "half.npz"], "cannot be read"),
        (["--data", tmp_path / "none.npz"], "is not a file"),
        (["--data", "digits", "--resume"], "name it with --checkpoint DIR"),
        (["--data", "digits", "--schedule", "cosine{warm=1}"], "did you mean warmup?"),
        (["--data", "digits", "--engine", "gpu"], "there is no engine 'gpu'"),
        (["--data", "digits", "-o", tmp_path / "text.txt"], "is a file of another kind"),
        (["--data", "digits", "-o", step], "is the model itself"),
        (["--data", "digits", "--test", tmp_path / "bad.npz"], "'labels' holds 11"),
        (["--data", "digits", "--checkpoint", tmp_path / "text.txt"], "is a file; name another place"),
        (["--data", "digits", "--metrics", tmp_path / "text.txt"], "cannot be written"),
        (["--data", "digits", "--lr", "1e38"], "made the first NaN or infinity"),
        (["--data", "digits", "--micro-batches", "2"], "no input 'apply'"),
    ]
    for options, message in cases:
        result = graphopt("train", step, "--engine", "onnxruntime", "--epochs", 1, *options)
        assert result.code == 1, options
        assert message in result.err
        assert result.err.splitlines()[-1].startswith("graphopt: ")
        assert "Traceback" not in result.err
        assert result.out == ""
    assert (tmp_path / "text.txt").read_text() == "precious"


def test_a_model_that_cannot_be_written_is_not_lost(
    step: Path, graphopt: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.chdir(tmp_path)
    (tmp_path / "step.checkpoints").mkdir()  # of an earlier training
    arguments = ("train", step, "--data", "digits", "--epochs", 1, "--engine", "onnxruntime", "-o", "t.onnx")
    with monkeypatch.context() as patch:
        patch.setattr(onnx, "save_model", full)
        result = graphopt(*arguments)
    assert result.code == 1
    assert "No space left on device" in result.err
    assert "what was learned is in step.checkpoints-2: --checkpoint step.checkpoints-2 --resume" in result.err
    again = graphopt(*arguments, "--checkpoint", "step.checkpoints-2", "--resume", "--json")
    assert again.document["steps"] == 44
    assert (tmp_path / "t.onnx").exists()


def test_the_digits_need_a_picture(graphopt: Call, tmp_path: Path) -> None:
    onnx.save(step_models.proto(step_models.linear()), tmp_path / "linear.onnx")
    result = graphopt("train", tmp_path / "linear.onnx", "--data", "digits", "--engine", "onnxruntime")
    assert result.one_sentence
    assert "the model takes samples of [3]" in result.err


SLOWLY = """
import sys, time
from graphopt.training.trainer import Trainer
update = Trainer.update
def slowly(self, group, rate):
    time.sleep(0.004)
    return update(self, group, rate)
Trainer.update = slowly
from graphopt.cli import main
sys.exit(main(sys.argv[1:]))
"""


def _arguments(step: Path, folder: Path) -> list[str]:
    return [
        sys.executable, "-P", "-c", SLOWLY, "train", str(step), "--data", "digits", "--epochs", "4", "--lr", "0.1",
        "--engine", "onnxruntime", "--threads", "1", "--schedule", "cosine{warmup=1}", "--checkpoint",
        str(folder / "run"), "--checkpoint-every", "5", "--keep", "2", "--resume", "--metrics", str(folder / "metrics"),
        "-o", str(folder / "out.onnx"),
    ]  # fmt: skip


def _losses(folder: Path) -> list[tuple[int, int, float]]:
    rows = map(json.loads, (folder / "metrics" / "metrics.jsonl").read_text().splitlines())
    return [(row["step"], row["epoch"], row["loss"]) for row in rows]


def test_a_killed_training_ends_with_the_same_bytes(step: Path, tmp_path: Path) -> None:
    """SIGKILL twice, wherever it hits; the last process finishes."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    subprocess.run(_arguments(step, whole), check=True, capture_output=True)
    for wait in (0.0, 0.137):
        process = subprocess.Popen(_arguments(step, killed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = _names(killed / "run")
        deadline = time.monotonic() + 60
        while _names(killed / "run") == before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(wait)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    subprocess.run(_arguments(step, killed), check=True, capture_output=True)
    for folder in (whole, killed):
        assert not [each for each in (folder / "run").iterdir() if each.suffix == ".tmp"]
    assert (killed / "out.onnx").read_bytes() == (whole / "out.onnx").read_bytes()
    assert _names(killed / "run") == _names(whole / "run")
    for name in _names(whole / "run"):
        assert (killed / "run" / name).read_bytes() == (whole / "run" / name).read_bytes()
    assert _losses(killed) == _losses(whole)


def _names(folder: Path) -> set[str]:
    return {name for name in os.listdir(folder) if not name.startswith(".")} if folder.exists() else set()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_says_how_to_go_on(number: signal.Signals, step: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(_arguments(step, tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not _names(tmp_path / "run") and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    last = err.splitlines()[-1]
    assert last.startswith(f"graphopt: {'Ctrl-C' if number == signal.SIGINT else 'SIGTERM'} after step ")
    assert last.endswith(f"everything is saved; go on with --checkpoint {tmp_path / 'run'} --resume")
    assert not (tmp_path / "out.onnx").exists()
