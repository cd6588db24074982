"""The sums of a group, in registers: the loop over its blocks, and over the inputs of a block.

Long sums restart at zero after some hundred additions and are added up (`partials.py` says why).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr
from tvm.script.ir_builder import tirx as T

from graphopt.targets.common.kernels.blocks import const
from graphopt.targets.cpu.kernels.partials import STEPS
from graphopt.targets.cpu.kernels.tiling import largest_divisor

IN_FLIGHT = 8
"""Sums that hide the latency of a multiply-add: two units, four cycles."""

UNROLLED = 4
"""Inputs of a deep block whose multiply-adds are written one after another."""

Term = Callable[[Expr, Expr, Expr, int, Expr], Expr]
"""(block, its input, the place of that input in x, vector, lane) -> a product."""


@dataclass(frozen=True, slots=True)
class Accumulator:
    """Sums of `vectors` vectors of `lanes` elements over blocks of `depth` inputs, the first of which is at `start`.

    With few vectors there are several partial sums, because each waits for its last addition. No group has more than
    `longest` blocks.
    """

    dtype: str
    vectors: int
    lanes: int
    depth: int
    longest: int
    start: Callable[[Expr], Expr]
    term: Term

    @property
    def partial(self) -> int:
        """Sums of each vector."""
        return max(1, IN_FLIGHT // self.vectors)

    def emit(self, begin: Expr, end: Expr) -> tirx.Buffer:
        """Emit the loops over blocks from `begin` to `end`; the sums, vector after vector."""
        sums = self._zeros(self.partial * self.vectors)
        length = max(1, STEPS // self.depth)
        if self.longest < 2 * length * self.partial:
            self._blocks(sums, begin, end)
            return sums
        length *= self.partial
        totals = self._zeros(self.vectors)
        with T.serial(0, tirx.floordiv(end - begin + length - 1, length)) as part:
            first = T.bind(begin + part * length)
            for at in range(self.partial * self.vectors):
                self._store(sums, at, lambda _: const(0, self.dtype))
            self._blocks(sums, first, T.bind(tirx.min(first + length, end)))
            for at in range(self.vectors):
                self._add(totals, at, lambda lane, at=at: sums[at * self.lanes + lane])  # type: ignore[misc]
        return totals

    def _zeros(self, vectors: int) -> tirx.Buffer:
        buffer = T.alloc_buffer((vectors * self.lanes,), self.dtype, scope="local")
        for at in range(vectors):
            self._store(buffer, at, lambda _: const(0, self.dtype))
        return buffer

    def _blocks(self, sums: tirx.Buffer, begin: Expr, end: Expr) -> None:
        """Add the products of some blocks, and bring the partial sums together."""
        together = max(1, self.partial // self.depth)
        steps = tirx.floordiv(end - begin, together)
        with T.serial(0, steps) as step:
            for turn in range(together):
                self._block(sums, begin + step * together + turn, turn)
        if together > 1:
            with T.serial(begin + steps * together, end) as block:
                self._block(sums, block, 0)
        for at in range(self.vectors, self.partial * self.vectors):
            self._add(sums, at % self.vectors, lambda lane, at=at: sums[at * self.lanes + lane])  # type: ignore[misc]

    def _block(self, sums: tirx.Buffer, block: Expr, turn: int) -> None:
        """Add the products of one block; neighbouring steps go to different partial sums."""
        start, depth = T.bind(self.start(block)), self.depth
        unrolled = depth if depth <= UNROLLED else largest_divisor(depth, UNROLLED)
        with T.serial(0, depth // unrolled) as outer:
            for inner in range(unrolled):
                step = outer * unrolled + inner
                first = (turn * unrolled + inner) % self.partial * self.vectors
                for vector in range(self.vectors):

                    def product(lane: Expr, step: Expr = step, vector: int = vector) -> Expr:
                        return self.term(block, step, start + step, vector, lane)

                    self._add(sums, first + vector, product)

    def _add(self, buffer: tirx.Buffer, vector: int, value: Callable[[Expr], Expr]) -> None:
        self._store(buffer, vector, lambda lane: buffer[vector * self.lanes + lane] + value(lane))

    def _store(self, buffer: tirx.Buffer, vector: int, value: Callable[[Expr], Expr]) -> None:
        with T.vectorized(0, self.lanes) as lane:
            T.buffer_store(buffer, value(lane), [vector * self.lanes + lane])
