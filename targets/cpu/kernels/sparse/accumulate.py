"""The sums of a group, in registers: the loop over its blocks, and over the inputs of a block."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.ir import Expr
from tvm.script.ir_builder import tirx as T

from graphopt.targets.common.kernels.blocks import const
from graphopt.targets.cpu.kernels.tiling import largest_divisor

IN_FLIGHT = 8
"""Sums that hide the latency of a multiply-add: two units, four cycles."""

UNROLLED = 4
"""Inputs of a deep block whose multiply-adds are written one after another."""

Term = Callable[[Expr, Expr, Expr, int, Expr], Expr]
"""(block, its input, the place of that input in x, vector, lane) -> a product."""


class Accumulator:
    """Sums of `vectors` vectors; with few, several partial ones, because each waits for its last addition."""

    def __init__(
        self, dtype: str, vectors: int, lanes: int, depth: int, start: Callable[[Expr], Expr], term: Term
    ) -> None:
        """Args: lanes: elements of a vector; depth: inputs of a block; start: its first one; term: what is added."""
        self.dtype, self.vectors, self.lanes, self.depth = dtype, vectors, lanes, depth
        self.start, self.term = start, term
        self.partial = max(1, IN_FLIGHT // vectors)

    def emit(self, begin: Expr, end: Expr) -> tirx.Buffer:
        """Emit the loops over blocks from `begin` to `end`; the sums, vector after vector."""
        sums = T.alloc_buffer((self.partial * self.vectors * self.lanes,), self.dtype, scope="local")
        for at in range(self.partial * self.vectors):
            with T.vectorized(0, self.lanes) as lane:
                T.buffer_store(sums, const(0, self.dtype), [at * self.lanes + lane])
        together = max(1, self.partial // self.depth)
        steps = tirx.floordiv(end - begin, together)
        with T.serial(0, steps) as step:
            for turn in range(together):
                self._block(sums, begin + step * together + turn, turn)
        if together > 1:
            with T.serial(begin + steps * together, end) as block:
                self._block(sums, block, 0)
        for at in range(self.vectors, self.partial * self.vectors):
            with T.vectorized(0, self.lanes) as lane:
                place = at % self.vectors * self.lanes + lane
                T.buffer_store(sums, sums[place] + sums[at * self.lanes + lane], [place])
        return sums

    def _block(self, sums: tirx.Buffer, block: Expr, turn: int) -> None:
        """Add the products of one block; neighbouring steps go to different partial sums."""
        start, depth = T.bind(self.start(block)), self.depth
        unrolled = depth if depth <= UNROLLED else largest_divisor(depth, UNROLLED)
        with T.serial(0, depth // unrolled) as outer:
            for inner in range(unrolled):
                step = outer * unrolled + inner
                first = (turn * unrolled + inner) % self.partial * self.vectors
                for vector in range(self.vectors):
                    with T.vectorized(0, self.lanes) as lane:
                        place = (first + vector) * self.lanes + lane
                        T.buffer_store(sums, sums[place] + self.term(block, step, start + step, vector, lane), [place])
