"""A loss that is no number: go back to the last checkpoint, repeat the steps since, and name what made it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

from graphopt.errors import GraphoptError, VerificationError
from graphopt.training.data.batches import Batches, groups
from graphopt.training.engine import Array, not_finite
from graphopt.training.nonfinite import first_nan
from graphopt.training.records.checkpoint import Position
from graphopt.training.trainer import Trainer

MOST_STEPS = 2000
"""Updates that are repeated at most to find the origin."""
MOST_BYTES = 1 << 38
"""Bytes of state that are looked at for it, over all steps: about a minute."""


def diverged(trainer: Trainer, batches: Batches, epochs: int, loss: float | None, kept: Path | None) -> GraphoptError:
    """The error to raise; the trainer is back at its last checkpoint, or at the beginning.

    Args:
        trainer: after the update whose loss, or whose parameters if `loss` is None, are no numbers.
        batches: what it is trained on.
        epochs: of the training, by which the learning rate is known again.
        loss: of the update that `trainer.position` does not count yet; None if the last one counted made parameters
            that are no numbers.
        kept: the last checkpoint.
    """
    position = trainer.position
    failed = position.step + (loss is not None)
    epoch = position.epoch if position.batch or loss is not None else position.epoch - 1
    what = f"the loss is {loss}" if loss is not None else "a parameter is no finite number"
    origin = _origin(trainer, batches, epochs, failed) or "what made it is not known"
    trainer.restore()
    last = "" if kept is None else f"; the last good checkpoint is {kept}"
    return GraphoptError(f"{what} in step {failed} (epoch {epoch + 1}): {origin}; try a lower learning rate{last}")


def _origin(trainer: Trainer, batches: Batches, epochs: int, failed: int) -> str | None:
    """The end of a sentence on the first operator whose result is not finite since the last checkpoint.

    A parameter that overflows may leave the loss a number for many steps, so the state after each is looked at; where
    that would move too many bytes, only the steps before the failed one and itself are.
    """
    steps = failed - trainer.restored.step
    if not batches.repeatable or steps > MOST_STEPS:
        return None
    trainer.restore()
    before = trainer.state()
    watched = steps * sum(array.nbytes for array in before.values()) <= MOST_BYTES
    try:
        for group, rate in _updates(trainer, batches, epochs):
            step = trainer.position.step + 1
            for number, batch in enumerate(group):
                given = trainer.feeds(batch, rate, number)
                last = step >= failed - 1
                before = trainer.state() if last else before
                loss = float(trainer.engine.step(given)[trainer.step_model.loss])
                after = trainer.learned() if watched else {}
                if last or not math.isfinite(loss) or not_finite(after) is not None:
                    found = first_nan(trainer.step_model.model, given, before)
                    if found is not None:
                        return f"{found}{_since(step, failed)}"
                before = trainer.state() if watched else before
            if step == failed:
                return "ONNX Runtime computes the same step without one, so try --engine onnxruntime"
            trainer.position = Position(step, trainer.position.epoch, trainer.position.batch + len(group))
    except VerificationError as error:
        return f"its origin was looked for and not found ({error})"
    return None


def _since(step: int, failed: int) -> str:
    return "" if step == failed else f" in step {step}"


def _updates(trainer: Trainer, batches: Batches, epochs: int) -> Iterator[tuple[list[dict[str, Array]], float]]:
    """The batches and rates of the updates from where the trainer is; the caller moves the position on."""
    for epoch in itertools.count(trainer.position.epoch):
        trainer.begin(epoch)
        count = trainer.micro_batches
        steps = (batches.steps or 0) // count
        for group in groups(batches.epoch(epoch, trainer.position.batch), count):
            yield group, trainer.rate(epoch, steps, epochs)
        trainer.position = Position(trainer.position.step, epoch + 1, 0)
