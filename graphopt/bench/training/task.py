"""What is timed: a model of the zoo, the loss and the optimizer of its step, and data for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from graphopt.training.build import StepModel, StepOptions, build_step
from graphopt.training.engine import RATE

if TYPE_CHECKING:
    from graphopt.models.zoo import ModelInfo

MOMENTUM, LEARNING_RATE = 0.9, 0.01


@dataclass(frozen=True, slots=True)
class Task:
    """A training step: `source` is `zoo:NAME`, the batch is that of its first input.

    The optimizer is SGD with momentum. `loss` is `cross-entropy` for class scores, else `mse`.
    """

    source: str
    loss: str

    @property
    def info(self) -> ModelInfo:
        """The model's description."""
        from graphopt import models

        return models.describe(self.source.removeprefix("zoo:"))

    def step(self) -> StepModel:
        """The step model."""
        batch = self.info.inputs[0].shape[0]
        return build_step(
            self.source,
            StepOptions(batch=batch, loss=self.loss, optimizer_options={"momentum": str(MOMENTUM)}),
        )


def suite() -> list[Task]:
    """The steps of `graphopt bench --suite train`."""
    from graphopt.models import zoo

    return [of(f"zoo:{info.name}") for info in zoo.TASKS]


def of(source: str) -> Task:
    """The step of a model of the zoo: cross entropy where its output is called logits, else the mean squared error."""
    from graphopt import models

    info = models.describe(source.removeprefix("zoo:"))
    return Task(source, "cross-entropy" if info.outputs == ("logits",) else "mse")


def feeds(step: StepModel, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Random data for a step: normal floats, integers in their range, and the learning rate."""
    draw = np.random.default_rng(seed)
    arrays: dict[str, NDArray[Any]] = {}
    for port in step.signature.ports:
        assert port.shape is not None
        if port.dtype.startswith("int"):
            limits = step.signature.ranges.get(port.name)
            low, high = (0, 1) if limits is None else (max(limits.low, 0), limits.high)
            arrays[port.name] = draw.integers(low, high + 1, size=port.shape).astype(port.dtype)
        else:
            arrays[port.name] = draw.normal(size=port.shape).astype(port.dtype)
    return {**arrays, RATE: np.array(LEARNING_RATE, np.float32)}


def split(step: StepModel, arrays: Mapping[str, NDArray[Any]]) -> tuple[list[NDArray[Any]], NDArray[Any]]:
    """The inputs of the model in order, and the labels or targets."""
    labels = step.signature.labels
    assert labels is not None
    names = [port.name for port in step.signature.ports if port.name != labels]
    return [arrays[name] for name in names], arrays[labels]
