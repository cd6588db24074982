"""Columns of a GEMM that do not sum over all of k: groups of them have ranges of their own, as blocks leave them.

    y[m, n] = sum of left(m, k) * right(k, n) over k from step * pointers[n / width] to step * pointers[n / width + 1]

Blocks of threads begin with the groups that have most to sum, so that none of those is left alone at the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.ir import Expr
from tvm.script.ir_builder import tirx as T


@dataclass(frozen=True, slots=True)
class Ragged:
    """The ranges of `groups` groups of `width` columns.

    `order` holds the pointers of the groups, then the groups themselves, the longest range first. `step` elements of k
    are one unit of the pointers.
    """

    order: tirx.Buffer
    groups: int
    width: int
    step: int

    def fits(self, columns: int, depth: int) -> bool:
        """Whether a tile of so many columns lies in one group, and slices so deep in one range."""
        return self.width % columns == 0 and self.step % depth == 0

    def column(self, tile: Expr, columns: int) -> Expr:
        """The first column of a tile."""
        each = self.width // columns
        group = self.order[self.groups + 1 + tile // each]
        return T.bind(group * self.width + tile % each * columns)

    def slices(self, column: Expr, depth: int) -> tuple[Expr, Expr]:
        """The first slice of k, and how many, that the columns of a tile sum over; maybe none."""
        group = column // self.width
        each = self.step // depth
        first, end = (self.order[group + at] * each for at in range(2))
        return T.bind(first), T.bind(end - first)


def order(rows: NDArray[np.integer], groups: int) -> NDArray[np.int32]:
    """`Ragged.order` of blocks whose groups are `rows`, ascending."""
    pointers = np.searchsorted(rows, np.arange(groups + 1))
    longest_first = np.argsort(-np.diff(pointers), kind="stable")
    return np.concatenate([pointers, longest_first]).astype(np.int32)
