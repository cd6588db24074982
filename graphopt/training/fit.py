"""The loop over epochs: batches, updates, evaluation, checkpoints, metrics."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from graphopt.errors import FeedError, GraphoptError, Interrupted
from graphopt.training.build import LEARNED
from graphopt.training.data.batches import Batches, groups
from graphopt.training.data.prefetch import prefetch
from graphopt.training.diverged import diverged
from graphopt.training.engine import Array, not_finite
from graphopt.training.interrupts import Stop, stopping
from graphopt.training.records.checkpoint import Position
from graphopt.training.records.folder import CheckpointFolder
from graphopt.training.records.history import EpochRecord, StepRecord
from graphopt.training.records.metrics import Metrics
from graphopt.training.trainer import Trainer

Evaluate = Callable[[Mapping[str, Array], Callable[[str], None]], tuple[float, float]]


class Watch(Protocol):
    """Who looks on."""

    def begin(self, epoch: int, done: int, steps: int | None) -> None:
        """An epoch, counted from 1, begins or goes on after `done` of `steps` updates."""

    def step(self, record: StepRecord, seconds: float) -> None:
        """An update is done."""

    def epoch(self, record: EpochRecord) -> None:
        """An epoch is done."""

    def say(self, text: str) -> None:
        """What goes on besides steps."""


class Silence:
    """Looks away."""

    def begin(self, epoch: int, done: int, steps: int | None) -> None:
        """Nothing."""

    def step(self, record: StepRecord, seconds: float) -> None:
        """Nothing."""

    def epoch(self, record: EpochRecord) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long, and what is kept.

    Attributes:
        epochs: of the whole training, those before it was resumed included.
        evaluate: loss and accuracy on the test set, of a state; None without a test set.
        checkpoints: written after each epoch; None writes none.
        every: updates between two checkpoints inside an epoch; None writes none there.
        rescue: where a checkpoint goes when the training is interrupted and `checkpoints` is None.
        metrics: files that are written as it goes.
    """

    epochs: int
    evaluate: Evaluate | None = None
    checkpoints: CheckpointFolder | None = None
    every: int | None = None
    rescue: CheckpointFolder | None = None
    metrics: Metrics | None = None


def train(trainer: Trainer, batches: Batches, plan: Plan, watch: Watch | None = None) -> None:
    """Train from where it is to the last epoch of the plan.

    Raises:
        GraphoptError: the data do not fit, a file cannot be written, or the loss is no number; in that case the
            trainer is back at its last checkpoint.
        Interrupted: Ctrl-C or SIGTERM, after the step and a checkpoint.
    """
    _Loop(trainer, batches, plan, watch or Silence()).run()


class _Loop:
    def __init__(self, trainer: Trainer, batches: Batches, plan: Plan, watch: Watch) -> None:
        self._trainer, self._batches, self._plan, self._watch = trainer, batches, plan, watch

    def run(self) -> None:
        with stopping() as stop:
            for epoch in range(self._trainer.position.epoch, self._plan.epochs):
                self._epoch(epoch, stop)

    def _epoch(self, epoch: int, stop: Stop) -> None:
        trainer, plan = self._trainer, self._plan
        trainer.begin(epoch)
        count, start = trainer.micro_batches, trainer.position.batch
        steps = None if self._batches.steps is None else self._batches.steps // count
        if steps == 0:
            raise FeedError(f"the data fill no update of {count} batches; lower the batch or --micro-batches")
        self._watch.begin(epoch + 1, start // count, steps)
        items = prefetch(groups(self._batches.epoch(epoch, start), count))
        with contextlib.closing(items):  # type: ignore[type-var]
            for group in items:
                self._update(group, epoch, steps)
                if stop.asked:
                    self._interrupt(stop)
                if plan.every is not None and trainer.position.step % plan.every == 0:
                    self._save()
        test = (math.nan, math.nan)
        if plan.evaluate is not None:
            test = plan.evaluate(trainer.learned(), self._watch.say)
        record = EpochRecord(epoch + 1, trainer.position.step, *trainer.history.mean(epoch + 1), *test)
        trainer.history.epochs.append(record)
        trainer.position = Position(trainer.position.step, epoch + 1, 0)
        if plan.metrics is not None:
            plan.metrics.epoch(record)
        self._watch.epoch(record)
        self._save(best=trainer.history.best is record)
        if stop.asked and epoch + 1 < plan.epochs:
            self._interrupt(stop)

    def _update(self, group: list[dict[str, Array]], epoch: int, steps: int | None) -> None:
        trainer, count = self._trainer, len(group)
        rate = trainer.rate(epoch, steps, self._plan.epochs)
        began = time.perf_counter()
        loss, accuracy = trainer.update(group, rate)
        seconds = time.perf_counter() - began
        if not math.isfinite(loss):
            raise self._diverged(loss)
        position = trainer.position
        trainer.position = Position(position.step + 1, epoch, position.batch + count)
        trainer.move_groups()
        record = StepRecord(position.step + 1, epoch + 1, loss, accuracy, rate)
        trainer.history.steps.append(record)
        if self._plan.metrics is not None:
            self._plan.metrics.step(record, seconds)
        self._watch.step(record, seconds)

    def _save(self, best: bool = False) -> None:
        if self._plan.metrics is not None:
            self._plan.metrics.flush()
        if self._plan.checkpoints is not None:
            self._watch.say("writing a checkpoint")
        self._save_in(self._plan.checkpoints, best)

    def _save_in(self, folder: CheckpointFolder | None, best: bool = False) -> None:
        """Write a checkpoint; none with parameters that are no numbers replaces a good one."""
        trainer = self._trainer
        checkpoint = trainer.checkpoint()
        wanted = {name for name, role in trainer.step_model.roles.items() if role in LEARNED}
        if not_finite({name: checkpoint.state[name] for name in wanted}) is not None:
            raise self._diverged(None)
        if folder is not None:
            trainer.restore_from(folder.save(checkpoint, best))

    def _diverged(self, loss: float | None) -> GraphoptError:
        folder = self._plan.checkpoints
        kept = folder.files() if folder is not None else []
        return diverged(self._trainer, self._batches, self._plan.epochs, loss, kept[-1] if kept else None)

    def _interrupt(self, stop: Stop) -> None:
        position = self._trainer.position
        where = f"{stop.asked} after step {position.step} (epoch {position.epoch + 1})"
        if self._plan.metrics is not None:
            self._plan.metrics.flush()
        folder = self._plan.checkpoints or self._plan.rescue
        if folder is None:
            raise Interrupted(f"{where}: the session holds the state; save it, or go on with fit")
        try:
            self._save_in(folder)
        except GraphoptError as error:
            raise Interrupted(f"{where}; {error}") from error
        raise Interrupted(f"{where}: everything is saved; go on with --checkpoint {folder.path} --resume")
