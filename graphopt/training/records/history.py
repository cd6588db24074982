"""What happened at each step and after each epoch, as numbers that a checkpoint keeps.

No time of day and no duration is among them: a training that was interrupted ends with the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from graphopt.errors import FeedError
from graphopt.training.engine import Array


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step, counted from 1. `accuracy` is the share of its batch that was classified right, NaN if unknown."""

    step: int
    epoch: int
    loss: float
    accuracy: float
    rate: float


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """One epoch, counted from 1: means over its steps, and the test set after it (NaN without one)."""

    epoch: int
    step: int
    loss: float
    accuracy: float
    test_loss: float
    test_accuracy: float

    @property
    def score(self) -> float:
        """What the best epoch has most of: test accuracy, else less test loss, else less training loss."""
        for value, sign in ((self.test_accuracy, 1), (self.test_loss, -1), (self.loss, -1)):
            if math.isfinite(value):
                return sign * value
        return -math.inf


@dataclass(slots=True)
class History:
    """All steps and epochs of a training."""

    steps: list[StepRecord] = field(default_factory=list)
    epochs: list[EpochRecord] = field(default_factory=list)

    @property
    def best(self) -> EpochRecord | None:
        """The epoch of the best score, the first of equals."""
        return max(self.epochs, key=lambda each: each.score, default=None)

    def mean(self, epoch: int) -> tuple[float, float]:
        """Mean loss and accuracy over the steps of an epoch."""
        rows = []
        for each in reversed(self.steps):
            if each.epoch != epoch:
                break
            rows.append((each.loss, each.accuracy))
        if not rows:
            return math.nan, math.nan
        loss, accuracy = np.array(rows[::-1]).mean(axis=0).tolist()
        return loss, accuracy

    def arrays(self) -> dict[str, Array]:
        """Columns by name, which `from_arrays` reads."""
        found: dict[str, Array] = {}
        for kind, rows in (("step", self.steps), ("epoch", self.epochs)):
            for name, dtype in _COLUMNS[kind].items():
                found[f"{kind}.{name}"] = np.array([getattr(row, name) for row in rows], dtype)
        return found

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> History:
        """The history of these columns.

        Raises:
            FeedError: a column is missing, or of another length or type.
        """
        made: dict[str, list[Any]] = {}
        for kind, record in (("step", StepRecord), ("epoch", EpochRecord)):
            columns = []
            for name, dtype in _COLUMNS[kind].items():
                column = arrays.get(f"{kind}.{name}")
                if column is None or column.dtype != dtype or column.ndim != 1:
                    raise FeedError(f"the column {kind}.{name} of its history is missing or of another type")
                columns.append(column.tolist())
            if len({len(column) for column in columns}) != 1:
                raise FeedError("the columns of its history differ in length")
            made[kind] = [record(*row) for row in zip(*columns, strict=True)]
        return cls(made["step"], made["epoch"])


_COLUMNS: dict[str, dict[str, str]] = {
    "step": {"step": "int64", "epoch": "int64", "loss": "float64", "accuracy": "float64", "rate": "float64"},
    "epoch": {
        "epoch": "int64",
        "step": "int64",
        "loss": "float64",
        "accuracy": "float64",
        "test_loss": "float64",
        "test_accuracy": "float64",
    },
}
"""The fields of the records, in their order."""
