"""`metrics.jsonl`: a line for each step and epoch; a resumed training repeats none."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from graphopt.errors import GraphoptError
from graphopt.training.records.checkpoint import Position
from graphopt.training.records.history import EpochRecord, History, StepRecord
from graphopt.training.records.metrics import FILE, Metrics


def _lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


def _write(folder: Path, steps: range, resumed: Position | None = None) -> None:
    metrics = Metrics(folder, resumed)
    for step in steps:
        metrics.step(StepRecord(step, 1 + (step - 1) // 3, 1 / step, 0.5, 0.1), 0.002)
        if step % 3 == 0:
            metrics.epoch(EpochRecord(step // 3, step, 1 / step, 0.5, math.nan, math.nan))
    metrics.close()


def test_what_is_not_known_is_left_out(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "new")
    metrics.step(StepRecord(1, 1, 2.5, math.nan, 0.1), 0.0021)
    metrics.epoch(EpochRecord(1, 1, 2.5, math.nan, 0.7, 0.75))
    metrics.close()
    assert _lines(tmp_path / "new") == [
        {"step": 1, "epoch": 1, "loss": 2.5, "lr": 0.1, "seconds": 0.0021},
        {"step": 1, "epoch": 1, "loss": 2.5, "test_loss": 0.7, "test_accuracy": 0.75},
    ]


@pytest.mark.parametrize("done", [Position(0, 0, 0), Position(2, 0, 2), Position(3, 0, 3), Position(3, 1, 0)])
def test_a_resumed_training_goes_on_without_repeating(done: Position, tmp_path: Path) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    _write(whole, range(1, 8))
    _write(folder, range(1, 6))  # killed after step 5; the last checkpoint is older
    with (folder / FILE).open("a") as file:
        file.write('{"step": 6, "ep')  # and in the middle of a line
    metrics = Metrics(folder, done)
    if done == Position(3, 0, 3):  # the epoch's own line comes again
        metrics.epoch(EpochRecord(1, 3, 1 / 3, 0.5, math.nan, math.nan))
    metrics.close()
    _write(folder, range(done.step + 1, 8), Position(done.step, 1 if done.step >= 3 else 0, 0))
    assert _lines(folder) == _lines(whole)


def test_metrics_of_another_training_are_not_overwritten(tmp_path: Path) -> None:
    _write(tmp_path, range(1, 3))
    with pytest.raises(GraphoptError, match="holds the metrics of another training"):
        Metrics(tmp_path)
    assert len(_lines(tmp_path)) == 2


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "no" / "such"):
        with pytest.raises(GraphoptError, match="--metrics: .* cannot be written"):
            Metrics(place)


def test_the_best_epoch_has_the_highest_score() -> None:
    nan = math.nan
    by_accuracy = History(epochs=[EpochRecord(1, 1, 9, nan, 9, 0.5), EpochRecord(2, 2, 1, nan, 1, 0.4)])
    by_test_loss = History(epochs=[EpochRecord(1, 1, 1, nan, 3, nan), EpochRecord(2, 2, 9, nan, 2, nan)])
    by_loss = History(epochs=[EpochRecord(1, 1, 1, nan, nan, nan), EpochRecord(2, 2, 9, nan, nan, nan)])
    assert [history.best.epoch for history in (by_accuracy, by_test_loss, by_loss) if history.best] == [1, 2, 1]
    assert History().best is None
