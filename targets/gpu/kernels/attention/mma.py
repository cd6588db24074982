"""Scaled dot-product attention of fp16 and bf16 on tensor cores, as one kernel: scores stay in registers.

    y[s, :] = sum over t of softmax(scale * q[s, :] . k[t, :] + mask[s, t]) * v[t, :]

A warp has 16 rows of queries, as registers of the left operand. Its scores with a tile of keys come out of the cores in
the very lanes in which the next GEMM wants its left operand, two neighbouring columns in one register: so weights
are rounded in place and multiply the values. Four lanes share a row, and exchange its maximum. Source of the algorithm:
T. Dao, FlashAttention-2 (2023), arXiv:2307.08691; of the lanes: `tensor_cores`.

Keys and values of the next tile are in flight, each into its own half of shared memory, while this one is multiplied.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tvm import te, tirx
from tvm.ir import Expr
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from graphopt.targets.common.kernels.blocks import const, dims
from graphopt.targets.common.kernels.guards import inside, when
from graphopt.targets.gpu.kernels.attention.launch import Shape
from graphopt.targets.gpu.kernels.attention.mma_launch import CHUNK, Tile, padded, stride
from graphopt.targets.gpu.kernels.gemm.access import Chunk
from graphopt.targets.gpu.kernels.gemm.epilogue_store import COLUMNS, ROWS
from graphopt.targets.gpu.kernels.gemm.tensor_cores import Units
from graphopt.targets.gpu.kernels.views import View, Views


def compute(
    q: te.Tensor,
    k: te.Tensor,
    v: te.Tensor,
    mask: te.Tensor | None,
    scale: float,
    shape: Shape,
    tile: Tile,
    units: Units,
    views: Views | None = None,
) -> te.Tensor:
    """The attention of q[B, H, S, D], k[B, H, T, D], v[B, H, T, E] as one TE tensor [B, H, S, E] of their type.

    A row of which every score is -inf is NaN, as a softmax of it is. The function needs `launch.attributes`.

    Args:
        mask: added to the scores, broadcasts against [B, H, S, T]; or None.
        views: how q, k, v and the result lie in tensors of other shapes; None where they lie as above.
    """
    seen = views or Views.whole(dims(q), dims(k), dims(v))

    def body(ins: Sequence[tirx.Buffer], outs: Sequence[tirx.Buffer]) -> tirx.Stmt:
        given = ins[3] if mask is not None else None
        return _Template(ins[0], ins[1], ins[2], given, outs[0], scale, shape, tile, units, seen).statement()

    inputs = [q, k, v] if mask is None else [q, k, v, mask]
    return te.extern([seen.result], inputs, body, dtype=[str(q.dtype)], name="attention")


class _Template:
    """Emits the kernel. A thread's values of its two rows, 8 apart, are [row] of `top`, `sums`, `shrink`."""

    def __init__(
        self,
        q: tirx.Buffer,
        k: tirx.Buffer,
        v: tirx.Buffer,
        mask: tirx.Buffer | None,
        y: tirx.Buffer,
        scale: float,
        shape: Shape,
        tile: Tile,
        units: Units,
        views: Views,
    ) -> None:
        self.q, self.k, self.v, self.mask, self.y = q, k, v, mask, y
        self.scale, self.shape, self.tile, self.units, self.views = scale, shape, tile, units, views
        self.per_batch = views.q.shape[1]
        self.deep, self.wide = padded(shape.depth), padded(shape.width)
        self.key_columns, self.columns = tile.keys // COLUMNS, self.wide // COLUMNS

    def statement(self) -> tirx.Stmt:
        """The body of the function."""
        s, t = self.shape, self.tile
        row_tiles = math.ceil(s.queries / t.rows)
        with IRBuilder() as builder:
            with T.prim_func(s_tir=True):
                T.func_name("main")
                with (
                    T.launch_thread("blockIdx.x", row_tiles * s.heads) as block,
                    T.launch_thread("threadIdx.x", t.threads) as thread,
                ):
                    self.thread, self.lane, self.warp = thread, thread % 32, thread // 32
                    self.head, self.first_row = block // row_tiles, block % row_tiles * t.rows
                    self._allocate()
                    self._body()
                    self._finish()
            return builder.get().body

    def _allocate(self) -> None:
        t, units = self.tile, self.units
        units.begin(self.thread, t.threads)
        queries, keys, values = t.elements(self.shape)
        self.shared = T.alloc_buffer((queries + 2 * (keys + values),), units.dtype, scope=units.scope)
        self.rows = units.registers(4 * (self.deep // 16))
        self.weights = units.registers(4 * (t.keys // 16))
        self.scores = self._floats(self.key_columns * 4)
        self.results = self._floats(self.columns * 4)
        self.top, self.sums, self.shrink, self.other = (self._floats(2) for _ in range(4))

    def _key_base(self, turn: Expr | int) -> Expr | int:
        """Where in shared memory that tile of keys lies."""
        queries, keys, _ = self.tile.elements(self.shape)
        return queries + turn % 2 * keys

    def _value_base(self, turn: Expr | int) -> Expr | int:
        queries, keys, values = self.tile.elements(self.shape)
        return queries + 2 * keys + turn % 2 * values

    def _floats(self, count: int) -> tirx.Buffer:
        return T.alloc_buffer((count,), "float32", scope="local")

    def _fill(self, buffer: tirx.Buffer, value: float) -> None:
        with self.units.unrolled(dims(buffer)[0]) as i:
            T.buffer_store(buffer, const(value, "float32"), [i])

    def _body(self) -> None:
        s, t, units = self.shape, self.tile, self.units
        self._fill(self.results, 0)
        self._fill(self.top, -math.inf)
        self._fill(self.sums, 0)
        self._copy(self.q, self.views.q, t.rows, s.depth, s.queries, self.first_row, 0)
        self._copy(self.k, self.views.k, t.keys, s.depth, s.keys, 0, self._key_base(0))
        units.commit()
        self._copy(self.v, self.views.v, t.keys, s.width, s.keys, 0, self._value_base(0))
        units.commit()
        count: Expr | int = math.ceil(s.keys / t.keys)
        if s.causal_offset is not None:
            count = tirx.min(tirx.floordiv(self.first_row + (t.rows - 1 + s.causal_offset), t.keys) + 1, count)
        with T.serial(0, count) as turn:
            start, more = turn * t.keys, turn + 1 < count
            masks = self._masks(start)
            units.wait(1)
            T.evaluate(T.tvm_storage_sync("shared"))
            with when(more):
                self._copy(self.k, self.views.k, t.keys, s.depth, s.keys, start + t.keys, self._key_base(turn + 1))
            units.commit()
            self._score(turn)
            self._scale(start, masks)
            self._weigh()
            units.wait(1)
            T.evaluate(T.tvm_storage_sync("shared"))
            with when(more):
                self._copy(self.v, self.views.v, t.keys, s.width, s.keys, start + t.keys, self._value_base(turn + 1))
            units.commit()
            self._average(turn)
        units.wait(0)

    def _copy(
        self,
        tensor: tirx.Buffer,
        view: View,
        rows: int,
        extent: int,
        count: int,
        start: Expr | int,
        base: Expr | int,
    ) -> None:
        """Begin to copy rows of a tensor into shared memory; what lies beyond it is zero."""
        across = padded(extent) // CHUNK
        total, threads = rows * across, self.tile.threads
        for turn in range(math.ceil(total / threads)):
            item = self.thread + turn * threads
            row, column = item // across, item % across * CHUNK
            index = view.index((self.head // self.per_batch, self.head % self.per_batch, start + row, column))
            exists = inside((start + row, count, rows), (column, extent, padded(extent)))
            with when(None if (turn + 1) * threads <= total else item < total):
                chunk = Chunk(tensor, tuple(index), None)
                self.units.copy(self.shared, base + row * stride(extent) + column, chunk, exists)

    def _score(self, turn: Expr) -> None:
        """Multiply the queries by a tile of keys."""
        units, t = self.units, self.tile
        pieces, row = self.lane // 8, self.lane % 8
        # queries came with the first keys, and stay
        with when(turn == 0), units.unrolled(self.deep // 16) as step:
            at = (self.warp * ROWS + pieces % 2 * 8 + row) * stride(self.shape.depth)
            units.load(self.rows, step * 4, self.shared, at + (step * 2 + pieces // 2) * CHUNK, False)
        self._fill(self.scores, 0)
        base = self._key_base(turn)
        with units.unrolled(self.deep // 16) as step:
            keys = units.registers(4 * (t.keys // 16))
            with units.unrolled(t.keys // 16) as pair:
                at = (pair * 16 + pieces // 2 * 8 + row) * stride(self.shape.depth)
                units.load(keys, pair * 4, self.shared, base + at + (step * 2 + pieces % 2) * CHUNK, False)
            with units.unrolled(self.key_columns) as j:
                units.multiply(self.scores, j * 4, self.rows, step * 4, keys, j * 2)

    def _masks(self, start: Expr) -> Callable[[Expr, int, int], Expr | None]:
        """The masks of this thread's scores, loads in flight: of column pair j, row 0 or 1, first or second."""
        mask, s = self.mask, self.shape
        if mask is None:
            return lambda j, row, each: None
        extents = [1] * (4 - len(dims(mask))) + dims(mask)
        rows, across = (2 if extents[2] > 1 else 1), extents[3] > 1
        count = rows * 2 * self.key_columns if across else rows
        own_masks = T.alloc_buffer((count,), str(mask.dtype), scope="local")
        zero = tirx.IntImm("int32", 0)

        def fetch(at: Expr | int, row: int, column: Expr) -> None:
            place = [self.head // self.per_batch, self.head % self.per_batch, self._row(row), column]
            place[2] = tirx.min(place[2], s.queries - 1)
            index = [zero if extent == 1 else each for each, extent in zip(place, extents, strict=True)]
            T.buffer_store(own_masks, mask[tuple(index[4 - len(dims(mask)) :])], [at])

        if not across:
            for row in range(rows):
                fetch(row, row, zero)
            return lambda j, row, each: own_masks[row % rows].astype("float32")
        with self.units.unrolled(self.key_columns) as j:
            for row in range(rows):
                for each in range(2):
                    column = tirx.min(start + self._column(j) + each, s.keys - 1)
                    fetch((j * rows + row) * 2 + each, row, column)
        return lambda j, row, each: own_masks[(j * rows + row % rows) * 2 + each].astype("float32")

    def _row(self, row: int) -> Expr:
        """The query of this thread's row 0 or 1."""
        return self.first_row + self.warp * ROWS + self.lane // 4 + row * 8

    def _column(self, j: Expr) -> Expr:
        """The first of this thread's two columns of tile j."""
        return j * COLUMNS + self.lane % 4 * 2

    def _scale(self, start: Expr, masks: Callable[[Expr, int, int], Expr | None]) -> None:
        """Scores times log2(e), because exp2 is what the hardware has; keys that do not exist score -inf."""
        s, t = self.shape, self.tile
        log2e = 1 / math.log(2)
        with self.units.unrolled(self.key_columns) as j:
            for row in range(2):
                for each in range(2):
                    at = j * 4 + row * 2 + each
                    value = self.scores[at] * const(self.scale * log2e, "float32")
                    masked = masks(j, row, each)
                    value = value if masked is None else value + masked * const(log2e, "float32")
                    if s.keys % t.keys:
                        exists = start + self._column(j) + each < s.keys
                        value = tirx.Select(exists, value, const(-math.inf, "float32"))
                    T.buffer_store(self.scores, value, [at])

    def _shared_by_lanes(self, values: tirx.Buffer, combine: Callable[[Expr, Expr], Expr]) -> None:
        """`combine` of the values of the four lanes that share a row, for each of the thread's rows."""
        for across in (1, 2):
            for row in range(2):
                self.units.exchange(self.other, row, values[row], across)
                T.buffer_store(values, combine(values[row], self.other[row]), [row])

    def _weigh(self) -> None:
        """Exponentials relative to the new maximum, in half precision; sums and results so far are rescaled to it."""
        units = self.units
        highest, relative = self._floats(2), self._floats(2)
        for row in range(2):
            T.buffer_store(highest, self.top[row], [row])
            with units.unrolled(self.key_columns) as j:
                pair = tirx.max(self.scores[j * 4 + row * 2], self.scores[j * 4 + row * 2 + 1])
                T.buffer_store(highest, tirx.max(highest[row], pair), [row])
        self._shared_by_lanes(highest, tirx.max)
        for row in range(2):
            none = highest[row] == const(-math.inf, "float32")  # then exponentials vanish relative to anything
            T.buffer_store(relative, tirx.Select(none, const(0, "float32"), highest[row]), [row])
            T.buffer_store(self.shrink, tirx.exp2(self.top[row] - relative[row]), [row])
            T.buffer_store(self.top, highest[row], [row])
            T.buffer_store(self.sums, self.sums[row] * self.shrink[row], [row])
        with units.unrolled(self.key_columns) as j:
            for row in range(2):
                for each in range(2):
                    at = j * 4 + row * 2 + each
                    T.buffer_store(self.scores, tirx.exp2(self.scores[at] - relative[row]), [at])
                    T.buffer_store(self.sums, self.sums[row] + self.scores[at], [row])
        with units.unrolled(self.key_columns) as j:
            for row in range(2):
                # tile 2i is chunk 0 of the left operand's step i, tile 2i + 1 its chunk 1: registers 2 and 3
                at = j * 4 + row * 2
                units.pack(self.weights, j * 2 + row, self.scores[at], self.scores[at + 1])
        with units.unrolled(self.columns) as e:
            for i in range(4):
                T.buffer_store(self.results, self.results[e * 4 + i] * self.shrink[i // 2], [e * 4 + i])

    def _average(self, turn: Expr) -> None:
        """Multiply the weights by a tile of values."""
        units, t = self.units, self.tile
        pieces, row = self.lane // 8, self.lane % 8
        base = self._value_base(turn)
        with units.unrolled(t.keys // 16) as step:
            values = units.registers(4 * (self.wide // 16))
            with units.unrolled(self.wide // 16) as pair:
                at = (step * 16 + pieces % 2 * 8 + row) * stride(self.shape.width)
                units.load(values, pair * 4, self.shared, base + at + pair * 16 + pieces // 2 * 8, True)
            with units.unrolled(self.columns) as e:
                units.multiply(self.results, e * 4, self.weights, step * 4, values, e * 2)

    def _finish(self) -> None:
        """Results over their sums."""
        s = self.shape
        self._shared_by_lanes(self.sums, lambda x, y: x + y)
        for row in range(2):
            T.buffer_store(self.sums, const(1, "float32") / self.sums[row], [row])
        for row in range(2):
            query = self._row(row)
            with (
                when(inside((query, s.queries, self.tile.rows))),
                self.units.unrolled(self.columns) as e,
                when(inside((self._column(e), s.width, self.wide))),
                T.vectorized(0, 2) as each,
            ):
                value = self.results[e * 4 + row * 2 + each] * self.sums[row]
                index = (self.head // self.per_batch, self.head % self.per_batch, query, self._column(e) + each)
                T.buffer_store(self.y, value.astype(str(self.y.dtype)), self.views.y.index(index))
