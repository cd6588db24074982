"""What the searches for a memory plan share. Sizes and offsets are counted in units of the alignment."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


@dataclass
class Table:
    """The buffers, and for each the others that are alive together with it."""

    sizes: list[int]
    firsts: list[int]
    lasts: list[int]
    neighbours: list[list[int]] = field(init=False)
    arrays: list[npt.NDArray[np.intp]] = field(init=False)

    def __post_init__(self) -> None:
        first = np.array(self.firsts, dtype=np.int64)
        last = np.array(self.lasts, dtype=np.int64)
        self.neighbours, self.arrays = [], []
        for index in range(len(self.sizes)):
            together = (first <= last[index]) & (first[index] <= last)
            together[index] = False
            found = np.flatnonzero(together)
            self.arrays.append(found)
            self.neighbours.append(found.tolist())


@dataclass
class Found:
    """Offsets, the height they need, and whether none can be lower."""

    offsets: list[int]
    height: int
    optimal: bool
    method: str
