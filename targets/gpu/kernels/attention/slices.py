"""Slices of tensors, copied through registers into shared memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tvm import tirx
from tvm.ir import Expr
from tvm.script.ir_builder import tirx as T

from graphopt.targets.common.kernels.blocks import const
from graphopt.targets.common.kernels.guards import inside, when
from graphopt.targets.gpu.kernels.attention.launch import VECTOR
from graphopt.targets.gpu.kernels.views import View


class Slice:
    """Rows x columns of a view [B, H, rows, columns] of a tensor that go through registers into shared memory.

    The kernel template has `thread`, `tile`, `head`, `per_batch`, and the buffer `shared` of `kept`.
    """

    def __init__(
        self, template: Any, tensor: tirx.Buffer, view: View, extents: tuple[int, int], step: int, to: int
    ) -> None:
        """Args: extents: of the slice. step: what the rows advance by in all. to: elements between rows there."""
        self.template, self.tensor, self.view, self.to = template, tensor, view, to
        self.rows, self.columns = view.shape[2:]
        self.vector = VECTOR if self.columns % VECTOR == 0 else 1
        self.across = extents[1] // self.vector
        self.total, self.threads = extents[0] * self.across, template.tile.threads
        self.turns = math.ceil(self.total / self.threads)
        self.steps = step, extents[1]

    def allocate(self) -> None:
        """Allocate the registers."""
        self.waiting = T.alloc_buffer((self.turns * self.vector,), str(self.tensor.dtype), scope="local")

    @contextmanager
    def _each(self) -> Iterator[tuple[Expr, Expr, Expr]]:
        """A turn of the thread: its number, and the first element that it takes."""
        with T.unroll(0, self.turns) as turn:
            item = self.template.thread + turn * self.threads
            with when(inside((item, self.total, self.threads))):
                yield turn, item // self.across, item % self.across * self.vector

    def fetch(self, first_row: Expr, first_column: Expr | int) -> None:
        """Load this thread's elements into registers; zeros for those that do not exist."""
        w = self.template
        with self._each() as (turn, row, column), T.vectorized(0, self.vector) as lane:
            at, start = first_row + row, first_column + column
            exists = inside((at, self.rows, self.steps[0]), (start, self.columns, self.steps[1]))
            place = (w.head // w.per_batch, w.head % w.per_batch, at, start + lane)
            value = self.tensor[tuple(self.view.index(place))]
            if exists is not None:
                value = tirx.if_then_else(exists, value, const(0, str(self.tensor.dtype)))
            T.buffer_store(self.waiting, value, [turn * self.vector + lane])

    def put(self, start: Expr | int) -> None:
        """Store what was fetched into shared memory, from `start` on."""
        with self._each() as (turn, row, column), T.vectorized(0, self.vector) as lane:
            value = self.waiting[turn * self.vector + lane].astype(self.template.kept)
            T.buffer_store(self.template.shared, value, [start + row * self.to + column + lane])
