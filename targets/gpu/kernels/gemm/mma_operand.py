"""One operand of a GEMM on tensor cores: from memory to shared memory, and from there to a warp's registers.

In shared memory it lies as it does in memory: along k where neighbours along k are contiguous, else along its places.
16 bytes behind every row keep the rows that a warp reads at once in different banks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

from tvm import tirx
from tvm.ir import Expr
from tvm.script.ir_builder import tirx as T

from graphopt.targets.common.kernels.blocks import const
from graphopt.targets.common.kernels.guards import inside, when
from graphopt.targets.gpu.kernels.gemm.access import AccessPattern
from graphopt.targets.gpu.kernels.gemm.epilogue_store import COLUMNS, ROWS
from graphopt.targets.gpu.kernels.gemm.mma_tile import Tile
from graphopt.targets.gpu.kernels.gemm.tensor_cores import Units


class Block(Protocol):
    """What an operand needs of the kernel that reads it: its tile, and one thread of a block."""

    tile: Tile
    units: Units
    shared: tirx.Buffer
    thread: Expr
    lane: Expr
    batch: Expr
    row: Expr
    column: Expr


class MmaOperand:
    """The left or the right operand. `size` elements of shared memory hold a slice of it."""

    def __init__(self, block: Block, access: AccessPattern, left: bool) -> None:
        """Args: left: whether it is the left operand."""
        t, units = block.tile, block.units
        self.block, self.units, self.access, self.is_left = block, units, access, left
        self.extent = t.m if left else t.n
        self.threads = t.threads
        self.along_depth, self.vector = self._access()
        self.asynchronous = self.vector > 1 and access.plain(units.dtype)
        self.inner = t.k if self.along_depth else self.extent
        self.outer = self.extent if self.along_depth else t.k
        # 16 bytes more make an odd number of chunks; words picked one by one want 8 of them more instead
        self.stride = self.inner + units.chunk * (1 if self.along_depth or units.transposes else 2)
        self.size = self.outer * self.stride
        self.total = self.inner * self.outer // self.vector
        self.turns = math.ceil(self.total / self.threads)

    def _access(self) -> tuple[bool, int]:
        """Whether rows of shared memory go along k, and how many elements a thread fetches at a time."""
        for along_depth in (True, False):
            extent = self.block.tile.k if along_depth else self.extent
            if extent % self.units.chunk == 0 and self.access.contiguous(along_depth, self.units.chunk):
                return along_depth, self.units.chunk
        return not self.access.neighbours(False) and self.access.neighbours(True), 1

    def allocate(self) -> None:
        """Allocate registers on the way to shared memory, where elements are computed."""
        if not self.asynchronous:
            self.waiting = T.alloc_buffer((self.turns * self.vector,), self.units.dtype, scope="local")

    def _each(self) -> Iterator[tuple[int, Expr, Expr, Expr]]:
        """For each turn of a thread: its number, the first place and depth, and the index in shared memory."""
        for turn in range(self.turns):
            item = self.block.thread + turn * self.threads
            inner = item % (self.inner // self.vector) * self.vector
            outer = item // (self.inner // self.vector)
            yield turn, *((outer, inner) if self.along_depth else (inner, outer)), outer * self.stride + inner

    def _idle(self, turn: int) -> Expr | None:
        """The condition of a turn that not all threads have work in; None if all have."""
        if (turn + 1) * self.threads <= self.total:
            return None
        return self.block.thread + turn * self.threads < self.total

    def _inside(self, place: Expr, depth: Expr) -> Expr | None:
        t = self.block.tile
        return inside((place, self.access.size, self.extent), (depth, self.access.depth, t.k * t.split))

    def copy(self, part: Expr | int, base: Expr | int) -> None:
        """Begin to copy slice `part` to the shared memory from `base` on."""
        w = self.block
        start = w.row if self.is_left else w.column
        for turn, place, depth, at in self._each():
            place, depth = start + place, part * w.tile.k + depth
            chunk = self.access.chunk(w.batch, place, depth)
            assert chunk is not None
            conditions = [each for each in (self._inside(place, depth), chunk.condition) if each is not None]
            with when(self._idle(turn)):
                self.units.copy(w.shared, base + at, chunk, tirx.all(*conditions) if conditions else None)

    def fetch(self, part: Expr | int) -> None:
        """Load this thread's elements of slice `part` into registers."""
        w = self.block
        start = w.row if self.is_left else w.column
        for turn, first, depth, _ in self._each():
            with when(self._idle(turn)), T.vectorized(0, self.vector) as lane:
                place = start + first + (0 if self.along_depth else lane)
                k = part * w.tile.k + depth + (lane if self.along_depth else 0)
                value = self._value(w.batch, place, k)
                guard = self._inside(place, k)
                if guard is not None:
                    value = tirx.if_then_else(guard, value, const(0, self.units.dtype))
                T.buffer_store(self.waiting, value, [turn * self.vector + lane])

    def _value(self, batch: Expr, place: Expr, depth: Expr) -> Expr:
        value = self.access.element(batch, place, depth)
        if isinstance(value, tirx.Cast) and str(value.value.ty.dtype) == self.units.dtype:
            return value.value
        return value.astype(self.units.dtype)

    def put(self, base: Expr | int) -> None:
        """Store the fetched elements into the shared memory from `base` on."""
        for turn, _, _, at in self._each():
            with when(self._idle(turn)), T.vectorized(0, self.vector) as lane:
                T.buffer_store(self.block.shared, self.waiting[turn * self.vector + lane], [base + at + lane])

    def fragments(self, base: Expr, step: Expr, start: Expr, count: int) -> tirx.Buffer:
        """The registers of `count` places from `start` on (a warp's), for one step of two chunks of k."""
        units = self.units
        per = ROWS if self.is_left else 2 * COLUMNS  # four registers, of one tile or of two neighbours
        registers = units.registers(4 * (count // per))
        if not self.along_depth and not units.transposes:
            self._picked(registers, base, step, start, count // per)
            return registers
        lane = self.block.lane
        piece, row = lane // 8, lane % 8
        # the left operand's registers go over its rows first, the right one's over k
        places, chunks = (piece % 2, piece // 2) if self.is_left else (piece // 2, piece % 2)
        with units.unrolled(count // per) as i:
            place = start + i * per + places * 8
            if self.along_depth:
                at = (place + row) * self.stride + (step * 2 + chunks) * units.chunk
            else:
                at = ((step * 2 + chunks) * units.chunk + row) * self.stride + place
            units.load(registers, i * 4, self.block.shared, base + at, not self.along_depth)
        return registers

    def _picked(self, registers: tirx.Buffer, base: Expr, step: Expr, start: Expr, count: int) -> None:
        lane, chunk = self.block.lane, self.units.chunk
        with self.units.unrolled(count) as i:
            for register in range(4):
                places, chunks = (register % 2, register // 2) if self.is_left else (register // 2, register % 2)
                place = start + i * 16 + places * 8 + lane // 4
                depth = (step * 2 + chunks) * chunk + lane % 4
                self.units.pick(registers, i * 4 + register, self.block.shared, base + depth * self.stride + place)
