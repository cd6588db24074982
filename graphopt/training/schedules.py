"""Learning rates over a training, spelled as passes are: `cosine{warmup=5}`, `step{every=30,decay=0.1}`.

A schedule gives the factor of the base rate at a moment, which is counted in epochs with a fraction: after half of the
first epoch it is 0.5. All of them take `warmup` (epochs in which the factor rises from nearly 0 in a line), and
`base-batch` (the batch that the rate was found for: the rate grows with the batch, Goyal et al. 2017,
arXiv:1706.02677).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from graphopt.errors import GraphoptError, PipelineError
from graphopt.pipeline.pass_base import suggest
from graphopt.pipeline.spelling import split


@dataclass(frozen=True)
class Schedule:
    """Base of all schedules; its fields are its options."""

    name: ClassVar[str] = ""
    grows: ClassVar[bool] = False
    warmup: float = 0.0
    base_batch: int = 0

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            GraphoptError: an option is out of range.
        """
        self._require("warmup", self.warmup >= 0, "0 or more epochs")
        self._require("base-batch", self.base_batch >= 0, "a number of samples")

    def factor(self, epoch: float, epochs: int) -> float:
        """What the base rate is multiplied by at `epoch` of `epochs`, without warm-up."""
        del epoch, epochs
        return 1.0

    def micro_batches(self, epoch: int) -> int:
        """How many batches are gathered for one update in this epoch."""
        del epoch
        return 1

    def rate(self, base: float, moment: float, step: float, epochs: int, batch: int) -> float:
        """The learning rate of the next step.

        Args:
            base: the rate that the user gave.
            moment: epochs that are done, with a fraction.
            step: the part of an epoch that one step is.
            epochs: epochs of the training.
            batch: samples of an update.
        """
        scaled = base * batch / self.base_batch if self.base_batch else base
        if moment < self.warmup:
            return scaled * min((moment + step) / self.warmup, 1.0)
        return scaled * self.factor(moment, epochs)

    def _require(self, name: str, holds: bool, what: str) -> None:
        if not holds:
            raise GraphoptError(
                f"option {name} of schedule {self.name} is {getattr(self, name.replace('-', '_'))}; it must be {what}"
            )

    def _decaying(self, epoch: float, epochs: int) -> float:
        """How much of the time after the warm-up is over, 0 to 1."""
        return min(max((epoch - self.warmup) / max(epochs - self.warmup, 1e-9), 0.0), 1.0)

    def __str__(self) -> str:
        """The spelling of the schedule, options at their defaults left out."""
        given = [
            f"{field.name.replace('_', '-')}={_spelled(getattr(self, field.name))}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        ]
        return f"{self.name}{{{','.join(given)}}}" if given else self.name


@dataclass(frozen=True)
class Constant(Schedule):
    """The base rate throughout."""

    name = "constant"


@dataclass(frozen=True)
class Cosine(Schedule):
    """Falls from 1 to `least` in half a cosine (Loshchilov and Hutter 2017, arXiv:1608.03983)."""

    name = "cosine"
    least: float = 0.0

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        self._require("least", 0 <= self.least <= 1, "a factor from 0 to 1")

    def factor(self, epoch: float, epochs: int) -> float:
        """Half a cosine."""
        return self.least + (1 - self.least) * (1 + math.cos(math.pi * self._decaying(epoch, epochs))) / 2


@dataclass(frozen=True)
class Polynomial(Schedule):
    """Falls from 1 to `least` as (1 - t) ** power; power 1 is a line."""

    name = "polynomial"
    power: float = 1.0
    least: float = 0.0

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        self._require("power", self.power > 0, "above 0")
        self._require("least", 0 <= self.least <= 1, "a factor from 0 to 1")

    def factor(self, epoch: float, epochs: int) -> float:
        """A power of the time that is left."""
        return self.least + float((1 - self.least) * (1 - self._decaying(epoch, epochs)) ** self.power)


@dataclass(frozen=True)
class Exponential(Schedule):
    """Multiplied by `decay` for each epoch, smoothly."""

    name = "exponential"
    decay: float = 0.95

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        self._require("decay", 0 < self.decay <= 1, "a factor above 0, at most 1")

    def factor(self, epoch: float, epochs: int) -> float:
        """A power of `decay`."""
        return float(self.decay ** max(epoch - self.warmup, 0.0))


@dataclass(frozen=True)
class Step(Schedule):
    """Multiplied by `decay` every so many epochs."""

    name = "step"
    every: int = 30
    decay: float = 0.1

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        self._require("every", self.every >= 1, "1 or more epochs")
        self._require("decay", 0 < self.decay <= 1, "a factor above 0, at most 1")

    def factor(self, epoch: float, epochs: int) -> float:
        """A power of `decay` that grows with whole steps."""
        return float(self.decay ** (int(epoch) // self.every))


@dataclass(frozen=True)
class MultiStep(Schedule):
    """Multiplied by `decay` at each of the epochs `at`, which are spelled `30+60+80`."""

    name = "multi-step"
    at: tuple[int, ...] = ()
    decay: float = 0.1

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        self._require("at", bool(self.at) and all(each >= 1 for each in self.at), "epochs as 30+60+80")
        self._require("decay", 0 < self.decay <= 1, "a factor above 0, at most 1")

    def factor(self, epoch: float, epochs: int) -> float:
        """A power of `decay` that grows at each place."""
        return float(self.decay ** sum(int(epoch) >= each for each in self.at))


@dataclass(frozen=True)
class GrowingBatch(Schedule):
    """Keeps the rate and lets the batch grow instead (Smith et al. 2018, arXiv:1711.00489).

    The number of micro-batches of an update is multiplied by `times` every so many epochs, up to `most`.
    """

    name = "growing-batch"
    grows = True
    every: int = 30
    times: int = 2
    most: int = 16

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        for name in ("every", "times", "most"):
            self._require(name, getattr(self, name) >= 1, "1 or more")

    def micro_batches(self, epoch: int) -> int:
        """A power of `times`, at most `most`."""
        count = 1
        for _ in range(epoch // self.every):
            if count * self.times > self.most or self.times == 1:
                break
            count *= self.times
        return count


SCHEDULES: dict[str, type[Schedule]] = {
    each.name: each for each in (Constant, Cosine, Step, MultiStep, Exponential, Polynomial, GrowingBatch)
}
"""Name -> schedule."""

_READ: dict[str, tuple[Callable[[str], Any], str]] = {
    "float": (float, "a number"),
    "int": (int, "a whole number"),
    "tuple[int, ...]": (lambda text: tuple(map(int, text.split("+"))), "epochs as 30+60+80"),
}


def parse(text: str) -> Schedule:
    """Read `name{option=value,...}`.

    Raises:
        GraphoptError: there is no such schedule or option, or a value is out of range; close names are offered.
    """
    try:
        ((name, texts),) = split(text)
    except (PipelineError, ValueError):
        raise GraphoptError(f"cannot read the schedule {text!r}; write it as cosine{{warmup=5}}") from None
    if name not in SCHEDULES:
        raise GraphoptError(f"there is no schedule {name}; {suggest(name, SCHEDULES)}")
    kind = SCHEDULES[name]
    fields = {field.name.replace("_", "-"): field for field in dataclasses.fields(kind)}
    values: dict[str, Any] = {}
    for option, value in texts.items():
        if option not in fields:
            raise GraphoptError(f"schedule {name} has no option {option}; {suggest(option, fields)}")
        read, what = _READ[str(fields[option].type)]
        try:
            found = read(value)
            if isinstance(found, float) and not math.isfinite(found):
                raise ValueError
        except ValueError:
            raise GraphoptError(f"option {option} of schedule {name} is {value!r}; it must be {what}") from None
        values[fields[option].name] = found
    return kind(**values)


def _spelled(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, tuple) else repr(value)
