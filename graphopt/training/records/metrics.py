"""The metrics of a run as files: `metrics.jsonl`, a JSON object in each line, and events for TensorBoard.

{"step": 3, "epoch": 1, "loss": 1.87, "accuracy": 0.41, "lr": 0.05, "seconds": 0.0021}
{"epoch": 1, "step": 22, "loss": 1.52, "accuracy": 0.55, "test_loss": 0.97, "test_accuracy": 0.81}
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import IO, Any

from graphopt.errors import GraphoptError
from graphopt.program.files import write_file
from graphopt.training.records.checkpoint import Position
from graphopt.training.records.events import EventFile
from graphopt.training.records.history import EpochRecord, StepRecord

FILE = "metrics.jsonl"


class Metrics:
    """Writes the metrics of one run into a folder."""

    def __init__(self, folder: Path, resumed: Position | None = None) -> None:
        """Begin or go on.

        Args:
            folder: made if it does not exist.
            resumed: where a resumed training goes on: lines of later steps, and a half line, were left by a killed run
                and go. None for a new training.

        Raises:
            GraphoptError: the folder cannot be written to, or holds the metrics of another training.
        """
        self.path = folder / FILE
        try:
            folder.mkdir(exist_ok=True)
            if resumed is not None:
                write_file(self.path, "".join(_kept(self.path, resumed)).encode())
            else:
                check_folder(folder, resume=False)
            self._events = EventFile(folder, None if resumed is None else resumed.step)
            self._lines: IO[str] = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise self._cannot(error) from error

    def step(self, record: StepRecord, seconds: float) -> None:
        """Record a step, which took `seconds`."""
        row = {
            "step": record.step,
            "epoch": record.epoch,
            "loss": record.loss,
            "accuracy": record.accuracy,
            "lr": record.rate,
            "seconds": round(seconds, 6),
        }
        self._add(row)
        self._events.add(
            record.step, _known({"train/loss": record.loss, "train/accuracy": record.accuracy, "train/lr": record.rate})
        )

    def epoch(self, record: EpochRecord) -> None:
        """Record an epoch."""
        names = ("epoch", "step", "loss", "accuracy", "test_loss", "test_accuracy")
        self._add({name: getattr(record, name) for name in names})
        self._events.add(record.step, _known({"test/loss": record.test_loss, "test/accuracy": record.test_accuracy}))

    def flush(self) -> None:
        """Give everything to the system: no line of a step that a checkpoint holds is missing."""
        try:
            self._lines.flush()
        except OSError as error:
            raise self._cannot(error) from error
        self._events.flush()

    def close(self) -> None:
        """End both files."""
        try:
            self._lines.close()
        except OSError as error:
            raise self._cannot(error) from error
        self._events.close()

    def _add(self, row: dict[str, Any]) -> None:
        try:
            self._lines.write(json.dumps(_known(row), allow_nan=False) + "\n")
        except OSError as error:
            raise self._cannot(error) from error

    def _cannot(self, error: OSError) -> GraphoptError:
        return GraphoptError(
            f"--metrics: {self.path} cannot be written: {error.strerror or error}; name another folder"
        )


def check_folder(folder: Path, resume: bool) -> None:
    """Check that metrics can be written, before the long work begins.

    Raises:
        GraphoptError: `folder` is a file, lies in no folder, or holds the metrics of another training.
    """
    if folder.exists() and not folder.is_dir():
        raise GraphoptError(f"--metrics {folder} cannot be written: it is a file; name a folder")
    if not folder.absolute().parent.is_dir():
        raise GraphoptError(f"--metrics {folder} cannot be written: the folder {folder.parent} does not exist; make it")
    path = folder / FILE
    if not resume and path.exists() and path.stat().st_size:
        raise GraphoptError(
            f"--metrics {folder} holds the metrics of another training; remove them or name another folder"
        )


def _known(row: dict[str, Any]) -> dict[str, Any]:
    """The entries that are numbers: what is unknown is NaN, and left out."""
    return {name: value for name, value in row.items() if not isinstance(value, float) or math.isfinite(value)}


def _kept(path: Path, resumed: Position) -> list[str]:
    """The complete lines of the steps and epochs that are done."""
    kept: list[str] = []
    if not path.exists():
        return kept
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
                is_epoch = "seconds" not in row
                if not line.endswith("\n") or row["step"] > resumed.step:
                    break
                if is_epoch and row["epoch"] > resumed.epoch:
                    break
            except (ValueError, KeyError, TypeError, RecursionError):
                break
            kept.append(line)
    return kept
