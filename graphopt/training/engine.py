"""The contract between the training loop and what runs a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from graphopt.program.program import Port

Array = NDArray[Any]

RATE = "lr"
"""The input of a step model that holds the learning rate, a float scalar."""
COUNT = "correct"
"""The output of a step model that counts how many samples of the batch were classified right, if nothing names it."""


class Engine(Protocol):
    """Runs the steps of one training, and holds its state."""

    @property
    def inputs(self) -> tuple[Port, ...]:
        """What a step is given: batches of the data, and the learning rate."""

    @property
    def memory(self) -> Mapping[str, int]:
        """Bytes by kind, as far as they are known; may be empty."""

    @property
    def identity(self) -> str:
        """What the last bits of a step depend on besides its inputs: the code, and the number of threads."""

    def step(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run one step and update the state.

        Returns:
            The outputs that are no state: the loss, and whatever else the model gives.

        Raises:
            GraphoptError: the step failed; the state is as it was before.
        """

    def state(self) -> dict[str, Array]:
        """Copies of the state values by name."""

    def load_state(self, state: Mapping[str, Array]) -> None:
        """Replace the state values.

        Raises:
            FeedError: the names, dtypes or shapes are not those of this engine's state; nothing was replaced.
        """


def describe(array: Array) -> str:
    """`float32 [3, 4]`."""
    return f"{array.dtype.name} {list(array.shape)}"


def mismatch(expected: Mapping[str, Array], given: Mapping[str, Array]) -> str | None:
    """The first difference in names, dtypes and shapes of two states, as the end of a sentence; None without one."""
    for name, array in expected.items():
        if name not in given:
            return f"it lacks {name}"
        if (array.dtype, array.shape) != (given[name].dtype, given[name].shape):
            return f"its {name} is {describe(given[name])}, and {describe(array)} is expected"
    unknown = next((name for name in given if name not in expected), None)
    return None if unknown is None else f"it has {unknown}, which is unknown here"


def not_finite(state: Mapping[str, Array]) -> str | None:
    """The name of the first float array that holds a NaN or an infinity; None if all are finite."""
    for name, array in state.items():
        if array.dtype.kind in "fV" and not np.isfinite(array).all():  # V: bfloat16 of ml_dtypes
            return name
    return None
