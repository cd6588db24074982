"""The trainer: an engine with its place in the training, its history, and the checkpoint that it can go back to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.errors import FeedError, GraphoptError
from graphopt.graph.constness import stored
from graphopt.graph.state import Role, states
from graphopt.passes.training.sparse.parameter import restored
from graphopt.program.weights import numpy_dtype
from graphopt.training.build import APPLY, LEARNED, StepModel
from graphopt.training.engine import RATE, Array, Engine
from graphopt.training.records import checkpoint as files
from graphopt.training.records.checkpoint import Checkpoint, Position
from graphopt.training.records.history import History
from graphopt.training.schedules import Constant, Schedule
from graphopt.training.sparse import SparseTraining

Feeds = Mapping[str, Array]
_EXACT = {"seed": "--seed", "batch": "--batch", "data": "the data", "micro_batches": "--micro-batches"}
"""Settings without which a resumed training takes other batches, and what they are called."""


class Trainer:
    """Runs updates and knows where it is.

    Attributes:
        step_model: the model of the whole training.
        engine: runs its steps.
        lr: base learning rate.
        schedule: its factor over time.
        position: where the training is.
        history: steps and epochs so far.
        settings: what makes a training go on with the same bits; JSON values.
        restored: the position that `restore` goes back to.
        micro_batches: runs of one update, in this epoch.
    """

    def __init__(
        self,
        step_model: StepModel,
        engine: Engine,
        *,
        lr: float,
        schedule: Schedule | None = None,
        micro_batches: int = 1,
        settings: Mapping[str, Any] | None = None,
        sparse: SparseTraining | None = None,
    ) -> None:
        """Begin at step 0 with the state of the engine.

        Args:
            step_model: what the engine runs.
            engine: holds the state.
            lr: base learning rate.
            schedule: its factor over time; None keeps it.
            micro_batches: runs of one update at the beginning; the schedule may make it more.
            settings: seed and data, for checkpoints.
            sparse: when groups of sparse weights move.

        Raises:
            GraphoptError: the learning rate is no finite number of 0 or more, or the step model has no micro-batches.
        """
        check_rate(lr)
        self.step_model, self.engine = step_model, engine
        self.lr, self.schedule = lr, schedule or Constant()
        self.settings: dict[str, Any] = {
            "lr": lr,
            "schedule": str(self.schedule),
            "engine": engine.identity,
            "batch": step_model.signature.batch,
            "micro_batches": micro_batches,
            **(settings or {}),
        }
        self.position, self.history = Position(), History()
        self.restored = self.position
        self._digest = step_model.digest()
        self._sparse = sparse
        self._base = self.micro_batches = micro_batches
        if (micro_batches > 1 or self.schedule.grows) and all(port.name != APPLY for port in engine.inputs):
            raise GraphoptError(
                f"this step model updates in every run: it has no input {APPLY!r}; make it with micro-batches, or give "
                "the model that it is made of"
            )
        self._source: Path | None = None

    def state(self) -> dict[str, Array]:
        """Copies of the state values by name."""
        return self.engine.state()

    def rate(self, epoch: int, steps: int | None, epochs: int) -> float:
        """The learning rate of the next update, in an epoch of `steps` updates."""
        done = self.position.batch // self.micro_batches
        samples = self.step_model.signature.batch * self.micro_batches
        moment = epoch + (done / steps if steps else 0.0)
        return self.schedule.rate(self.lr, moment, 1 / (steps or 1), epochs, samples)

    def feeds(self, batch: Feeds, rate: float, number: int) -> dict[str, Array]:
        """What the engine is given for the micro-batch `number` of an update."""
        special = {RATE: rate, APPLY: number + 1 == self.micro_batches}
        dtypes = {port.name: numpy_dtype(port.dtype) for port in self.engine.inputs if port.name in special}
        return {**batch, **{name: np.asarray(special[name], dtype) for name, dtype in dtypes.items()}}

    def update(self, group: Sequence[Feeds], rate: float) -> tuple[float, float]:
        """Run one update, of as many batches as it has; returns the mean loss and accuracy (NaN if unknown).

        Raises:
            GraphoptError: the engine failed.
        """
        losses, right, counted = [], 0, 0
        labels, count = self.step_model.signature.labels, self.step_model.correct
        for number, batch in enumerate(group):
            outputs = self.engine.step(self.feeds(batch, rate, number))
            losses.append(float(outputs[self.step_model.loss]))
            if count is not None and labels is not None:
                right += int(outputs[count])
                counted += self._counted(batch[labels])
        return math.fsum(losses) / len(losses), right / counted if counted else math.nan

    def _counted(self, labels: Array) -> int:
        limits = self.step_model.signature.ranges.get(str(self.step_model.signature.labels))
        if limits is None or limits.ignored is None:
            return int(labels.size)
        return int((labels != limits.ignored).sum())

    def move_groups(self) -> None:
        """Move groups of sparse weights, if they are to move after the update that was made last."""
        if self._sparse is not None:
            self._sparse.move(self.step_model, self.engine, self.position.step)

    def begin(self, epoch: int) -> None:
        """Make updates as large as the schedule wants them in this epoch."""
        self.micro_batches = self._base * self.schedule.micro_batches(epoch)

    def checkpoint(self) -> Checkpoint:
        """Everything that the training goes on from."""
        return Checkpoint(self._digest, self.position, self.settings, self.engine.state(), self.history)

    def resume(self, path: Path) -> list[str]:
        """Go on from a checkpoint; returns sentences on settings that are others than before.

        Raises:
            GraphoptError: it is damaged, of another model, or of a training whose batches were others.
        """
        found = files.load(path)
        if found.model != self._digest:
            raise GraphoptError(
                f"{path} is a checkpoint of another model, or of other options of its training; give those that it was "
                "begun with, or another folder"
            )
        notes = []
        for name, value in self.settings.items():
            old = found.settings.get(name)
            if old == value:
                continue
            if name in _EXACT:
                raise GraphoptError(
                    f"{path} was begun with {_EXACT[name]} {_spelled(old)}, and now it is {_spelled(value)}; give the "
                    "same"
                )
            notes.append(f"{name} is {value} from here on; the training began with {old}")
        self._go_to(found, path)
        self.restore_from(path)
        return notes

    def restore_from(self, path: Path) -> None:
        """Make the checkpoint at `path`, which is that of the current position, the one to go back to."""
        self._source, self.restored = path, self.position

    def restore(self) -> None:
        """Go back to the last checkpoint, or to the beginning.

        Raises:
            GraphoptError: the checkpoint can no longer be read.
        """
        if self._source is not None:
            self._go_to(files.load(self._source), self._source)
            return
        self.position, self.history = Position(), History()
        graph = self.step_model.model.graph
        first = {str(value.name): np.array(tensor.numpy()) for value in states(graph) if (tensor := stored(value))}
        self.engine.load_state(first)

    def learned(self, *wanted: Role) -> dict[str, Array]:
        """Parameters and statistics by name, or those of the roles `wanted`: what the trained model holds."""
        roles, wanted = self.step_model.roles, wanted or LEARNED
        dense = restored(self.step_model.model.graph, self.engine.state())
        return {name: array for name, array in dense.items() if roles.get(name, Role.PARAMETER) in wanted}

    def _go_to(self, found: Checkpoint, path: Path) -> None:
        try:
            self.engine.load_state(found.state)
        except FeedError as error:
            raise GraphoptError(f"{path}: {error}") from error
        self.position, self.history = found.position, found.history


def check_rate(lr: float) -> None:
    """Raises GraphoptError for a learning rate that is no finite number of 0 or more."""
    if not (math.isfinite(lr) and lr >= 0):
        raise GraphoptError(f"the learning rate is {lr}; give a finite number from 0 on")


def _spelled(value: object) -> str:
    """A setting in a message."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {each}" for name, each in value.items()) or "that is not known"
    return "unknown" if value is None else str(value)
