"""Compressed columns: where the non-zero entries of each column are, as counts of the zeros before them.

EIE (Han et al., EIE: efficient inference engine on compressed deep neural network, 2016) stores each entry with the
number of zeros between it and the one before in its column. Where more lie between than the index holds, a padding
entry of value zero stands behind the largest number of zeros, and counting begins again. Each column has a pointer to
its first entry. A column belongs to an input of the layer, its entries to outputs.

    0 0 7 0 ... (20 zeros) ... 5    ->    values 7 0 5    zeros before each 2 15 4    (indices of 4 bits)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BLOCK = 1 << 23
"""Matrix entries, or column entries, that are looked at together."""


@dataclass(frozen=True, slots=True)
class Columns:
    """`counts` [columns] entries in each column; for each entry the zeros before it and whether it is padding."""

    counts: NDArray[np.uint32]
    zeros: NDArray[np.uint8]
    padding: NDArray[np.bool_]

    def values(self, given: NDArray[Any]) -> NDArray[Any]:
        """The value of each entry: those `given` for the non-zero entries, column by column, and zero for padding."""
        every = np.zeros(len(self.zeros), given.dtype)
        every[~self.padding] = given
        return every


def compress(support: NDArray[np.bool_], index_bits: int) -> Columns:
    """The entries of the columns in which `support` [columns, length] is true, with indices of at most 8 bits."""
    columns, length = support.shape
    step = max(1, _BLOCK // max(length, 1))
    blocks = [_compress(support[first : first + step], 1 << index_bits) for first in range(0, columns, step)]
    if not blocks:
        return Columns(np.zeros(0, np.uint32), np.zeros(0, np.uint8), np.zeros(0, np.bool_))
    return Columns(*(np.concatenate(parts) for parts in zip(*blocks, strict=True)))


def _compress(
    support: NDArray[np.bool_], reach: int
) -> tuple[NDArray[np.uint32], NDArray[np.uint8], NDArray[np.bool_]]:
    column, place = np.nonzero(support)
    gaps = np.diff(place, prepend=-1) - 1
    first = np.flatnonzero(np.diff(column, prepend=-1))
    gaps[first] = place[first]
    each = gaps // reach + 1
    ends = np.cumsum(each)
    total = int(ends[-1]) if ends.size else 0
    zeros, padding = np.full(total, reach - 1, np.uint8), np.ones(total, np.bool_)
    zeros[ends - 1] = gaps % reach
    padding[ends - 1] = False
    starts = np.searchsorted(column, np.arange(len(support) + 1))
    counts = np.diff(np.concatenate([[0], ends])[starts]).astype(np.uint32)
    return counts, zeros, padding


def places(counts: NDArray[np.uint32], zeros: NDArray[np.uint8], length: int) -> Iterator[tuple[slice, NDArray[Any]]]:
    """The entries of some columns at a time, and their places in the flattened matrix [columns, `length`].

    Raises:
        ValueError: an entry lies outside its column.
    """
    ends = np.cumsum(counts, dtype=np.int64)
    first = 0
    while first < len(counts):
        start = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, start + _BLOCK, side="right")))
        entries = slice(start, int(ends[last - 1]))
        steps = np.cumsum(zeros[entries].astype(np.int64) + 1)
        before = ends[first:last] - counts[first:last] - start  # the first entry of each column
        origin = np.concatenate([[0], steps])[before]
        within = steps - 1 - np.repeat(origin, counts[first:last])
        if (within >= length).any():
            raise ValueError("an entry lies outside its column")
        yield entries, within + np.repeat(np.arange(first, last) * length, counts[first:last])
        first = last
