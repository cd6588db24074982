"""Progress of long work: a spinner or a bar on a terminal; elsewhere nothing, but a line for each epoch."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graphopt.training.records.history import EpochRecord, StepRecord


@contextlib.contextmanager
def progress(first: str) -> Iterator[Callable[[str], None]]:
    """Shows `first` on stderr; yields a function that changes the text."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from graphopt.cli.screen import spinner

    with spinner(first) as update:
        yield update


Show = Callable[[str, int, int | None], None]
"""Given a text, the steps that are done in the epoch, and those that it has if that is known."""


class Training:
    """Looks on a training. `seconds` are those of each step."""

    def __init__(
        self, epochs: int, memory: Callable[[], Mapping[str, int]], show: Callable[[str, int, int | None], None]
    ) -> None:
        """Begin.

        Args:
            epochs: of the whole training.
            memory: gives bytes by kind; asked when a step is done.
            show: draws the bar.
        """
        self.seconds: list[float] = []
        self._epochs, self._memory, self._show = epochs, memory, show
        self._epoch, self._done = 0, 0
        self._steps: int | None = None

    def begin(self, epoch: int, done: int, steps: int | None) -> None:
        """An epoch begins or goes on."""
        self._epoch, self._done, self._steps = epoch, done, steps

    def step(self, record: StepRecord, seconds: float) -> None:
        """A step is done."""
        from graphopt.report import units

        self.seconds.append(seconds)
        self._done += 1
        accuracy = f", {record.accuracy:.1%} right" if math.isfinite(record.accuracy) else ""
        used = sum(self._memory().values())
        memory = f", {units.nbytes(used)}" if used else ""
        each = units.seconds(sum(self.seconds[-20:]) / len(self.seconds[-20:]))
        self._tell(f"loss {record.loss:.4f}{accuracy}, {each} a step{memory}")

    def epoch(self, record: EpochRecord) -> None:
        """An epoch is done: a line that stays."""
        sys.stderr.write(epoch_line(record, self._epochs) + "\n")
        sys.stderr.flush()

    def say(self, text: str) -> None:
        """What goes on besides steps."""
        self._tell(text)

    def _tell(self, text: str) -> None:
        where = f"epoch {self._epoch}/{self._epochs}: " if self._epoch else ""
        self._show(f"{where}{text}", self._done, self._steps)


def epoch_line(record: EpochRecord, epochs: int) -> str:
    """`epoch 3/20: loss 0.2527, 94.1% right; test loss 0.2433, 95.0% right`."""

    def pair(loss: float, accuracy: float) -> str:
        right = f", {accuracy:.2%} right" if math.isfinite(accuracy) else ""
        return f"loss {loss:.4f}{right}"

    test = f"; test {pair(record.test_loss, record.test_accuracy)}" if math.isfinite(record.test_loss) else ""
    return f"epoch {record.epoch}/{epochs}: {pair(record.loss, record.accuracy)}{test}"


@contextlib.contextmanager
def training(epochs: int, memory: Callable[[], Mapping[str, int]]) -> Iterator[Training]:
    """Who looks on a training: a bar on a terminal; elsewhere only a line for each epoch on stderr."""
    if not sys.stderr.isatty():
        yield Training(epochs, memory, lambda *_: None)
        return
    from graphopt.cli.screen import bar

    with bar() as show:
        yield Training(epochs, memory, show)
