"""Data shared by the searches for a memory plan. Sizes and offsets are in units of the alignment."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


@dataclass
class Table:
    """The buffers, and for each the buffers whose lifetimes overlap its own."""

    sizes: list[int]
    firsts: list[int]
    lasts: list[int]
    neighbours: list[list[int]] = field(init=False)
    arrays: list[npt.NDArray[np.intp]] = field(init=False)

    def __post_init__(self) -> None:
        """Compute `neighbours` and `arrays`: per buffer, the indices of the buffers that are live with it."""
        first = np.array(self.firsts, dtype=np.int64)
        last = np.array(self.lasts, dtype=np.int64)
        self.neighbours, self.arrays = [], []
        for index in range(len(self.sizes)):
            overlaps = (first <= last[index]) & (first[index] <= last)
            overlaps[index] = False
            neighbours = np.flatnonzero(overlaps)
            self.arrays.append(neighbours)
            self.neighbours.append(neighbours.tolist())


@dataclass
class Found:
    """Offsets, their height, and whether no packing is lower."""

    offsets: list[int]
    height: int
    optimal: bool
    method: str
