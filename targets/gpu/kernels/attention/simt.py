"""Scaled dot-product attention as one kernel: the scores of a block's queries never leave it.

    y[s, :] = sum over t of softmax(scale * q[s, :] . k[t, :] + mask[s, t]) * v[t, :]

A block keeps its query rows and goes through the keys tile by tile: a GEMM with the keys, exponentials relative to
the largest score so far, a GEMM with the values; where the maximum grows, what was summed shrinks by e^(old - new)
(M. Milakov and N. Gimelshein, 2018, arXiv:1805.02867; T. Dao et al., 2022, arXiv:2205.14135). With few rows and many
keys, several blocks share the keys of a row, and a second kernel combines their results.

Keys and values come in slices through two halves of shared memory: while one is multiplied, the next is in flight.
All tiles lie in shared memory as in memory, rows padded to an odd number of vectors: neighbouring threads, which read
the same columns of neighbouring rows, then meet no bank twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from tvm import te, tirx
from tvm.ir import Expr
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from graphopt.targets.common.kernels.blocks import const, dims, round_up
from graphopt.targets.common.kernels.guards import inside, when
from graphopt.targets.gpu.kernels.attention.launch import STATIC, VECTOR, Shape, Tile, stride
from graphopt.targets.gpu.kernels.attention.slices import Slice
from graphopt.targets.gpu.kernels.views import Views

ADDERS = 64
"""Threads per block of the kernel that combines parts."""


def compute(
    q: te.Tensor,
    k: te.Tensor,
    v: te.Tensor,
    mask: te.Tensor | None,
    scale: float,
    shape: Shape,
    tile: Tile,
    views: Views | None = None,
) -> te.Tensor:
    """The attention of q[B, H, S, D], k[B, H, T, D], v[B, H, T, E] as one TE tensor [B, H, S, E].

    A row of which every score is -inf is NaN, as a softmax of it is. The function needs `launch.attributes`.

    Args:
        mask: added to the scores, broadcasts against [B, H, S, T]; or None.
        views: how q, k, v and the result lie in tensors of other shapes; None where they lie as above.
    """
    seen = views or Views.whole(dims(q), dims(k), dims(v))

    def body(ins: Sequence[tirx.Buffer], outs: Sequence[tirx.Buffer]) -> tirx.Stmt:
        given = ins[3] if mask is not None else None
        return _Template(ins[0], ins[1], ins[2], given, outs[0], scale, shape, tile, seen).statement()

    inputs = [q, k, v] if mask is None else [q, k, v, mask]
    return te.extern([seen.result], inputs, body, dtype=[str(q.dtype)], name="attention")


class _Template:
    """Emits the kernels; buffers hold elements of `kept`, flat, because TVM drops the padding of rows."""

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
        views: Views,
    ) -> None:
        self.q, self.k, self.v, self.mask, self.y = q, k, v, mask, y
        self.scale, self.shape, self.tile, self.kept, self.views = scale, shape, tile, shape.kept, views
        self.per_batch = views.q.shape[1]
        self.columns = tile.columns(shape)
        self.width = self.columns * tile.across  # with padding
        self.depth = round_up(shape.depth, tile.k_slice)
        self.deep_slices, self.key_slices = self.depth // tile.k_slice, tile.keys // tile.v_slice
        self.key_tiles = math.ceil(shape.keys / tile.keys)
        self.own_tiles = math.ceil(self.key_tiles / tile.split)
        self.parts = math.ceil(self.key_tiles / self.own_tiles)  # none of them without keys

    def statement(self) -> tirx.Stmt:
        """The body of the function."""
        s = self.shape
        with IRBuilder() as builder:
            with T.prim_func(s_tir=True):
                T.func_name("main")
                if self.parts == 1:
                    self._blocks(None, None)
                else:
                    rows = s.heads * s.queries
                    results = T.alloc_buffer((self.parts * rows * s.width,), self.kept, scope="global")
                    facts = T.alloc_buffer((2 * self.parts * rows,), self.kept, scope="global")
                    self._blocks(results, facts)
                    self._combine_parts(results, facts)
            return builder.get().body

    def _blocks(self, results: tirx.Buffer | None, facts: tirx.Buffer | None) -> None:
        s, t = self.shape, self.tile
        row_tiles = math.ceil(s.queries / t.rows)
        with (
            T.launch_thread("blockIdx.x", row_tiles * s.heads * self.parts) as block,
            T.launch_thread("threadIdx.x", t.threads) as thread,
        ):
            self.thread, self.across, self.down = thread, thread % t.across, thread // t.across
            self.head = block // row_tiles % s.heads
            self.part = block // (row_tiles * s.heads)
            self.first_row = block % row_tiles * t.rows
            self._allocate()
            self._body()
            self._finish(results, facts)

    def _allocate(self) -> None:
        t, s = self.tile, self.shape
        # One buffer: TVM would overlap those whose lifetimes seem disjoint, without a barrier between.
        queries, self.half, weights, partials = t.elements(s)
        self.slices, self.weights = queries, queries + 2 * self.half
        self.partials = self.weights + weights
        scope = "shared" if t.shared(s) <= STATIC else "shared.dyn"
        self.shared = T.alloc_buffer((self.partials + partials,), self.kept, scope=scope)
        self.scores = self._local(t.a * t.b)
        self.results = self._local(t.a * self.columns)
        self.top, self.sums = self._local(t.a), self._local(t.a)

    def _local(self, count: int) -> tirx.Buffer:
        return T.alloc_buffer((count,), self.kept, scope="local")

    def _body(self) -> None:
        """Load queries into shared memory, then go through all tiles of keys that this block has."""
        t = self.tile
        self._fill(self.results, 0)
        self._fill(self.top, -math.inf)
        self._fill(self.sums, 0)
        rows = Slice(self, self.q, self.views.q, (t.rows, t.k_slice), t.rows, stride(self.depth))
        rows.allocate()
        for part in range(self.deep_slices):
            rows.fetch(self.first_row, part * t.k_slice)
            rows.put(part * t.k_slice)
        self.of_keys = Slice(self, self.k, self.views.k, (t.keys, t.k_slice), t.keys, stride(t.k_slice))
        self.of_values = Slice(self, self.v, self.views.v, (t.v_slice, self.width), t.keys, self.width)
        for side in (self.of_keys, self.of_values):
            side.allocate()
        first = self.part * self.own_tiles
        count: Expr | int = self.own_tiles
        if self.key_tiles % self.own_tiles:
            count = tirx.min(self.own_tiles, self.key_tiles - first)
        if self.shape.causal_offset is not None:  # none at all for some parts, which then have nothing to say
            seen = self.first_row + (t.rows - 1 + self.shape.causal_offset)
            count = tirx.max(tirx.min(count, tirx.floordiv(seen, t.keys) + 1 - first), 0)
        self.of_keys.fetch(first * t.keys, 0)
        self.of_keys.put(self.slices)
        self._wait()
        with T.serial(0, count) as turn:
            self._tile(first + turn, turn, first + tirx.min(turn + 1, count - 1))

    def _tile(self, tile: Expr, turn: Expr, following: Expr) -> None:
        """One tile of keys: its first slice is in shared memory at the start, that of the next tile at the end."""
        t = self.tile
        slices = self.deep_slices + self.key_slices

        def half(number: Expr | int) -> Expr | int:
            return self.slices + ((turn * slices + number) if slices % 2 else number) % 2 * self.half

        start = tile * t.keys
        masks = self._masks(start)
        self._fill(self.scores, 0)
        if self.deep_slices > 1:
            with T.serial(0, self.deep_slices - 1) as part:
                self.of_keys.fetch(start, (part + 1) * t.k_slice)
                self._score(part * t.k_slice, half(part))
                self.of_keys.put(half(part + 1))
                self._wait()
        self.of_values.fetch(start, 0)
        self._score((self.deep_slices - 1) * t.k_slice, half(self.deep_slices - 1))
        self._scale(start, masks)
        self._publish_partial(self.scores, t.b, tirx.max)
        self.of_values.put(half(self.deep_slices))
        self._wait()
        self._weigh()
        self._wait()
        if self.key_slices > 1:
            with T.serial(0, self.key_slices - 1) as part:
                self.of_values.fetch(start + (part + 1) * t.v_slice, 0)
                self._average(part * t.v_slice, half(self.deep_slices + part))
                self.of_values.put(half(self.deep_slices + part + 1))
                self._wait()
        if self.own_tiles > 1:
            self.of_keys.fetch(following * t.keys, 0)
        self._average((self.key_slices - 1) * t.v_slice, half(slices - 1))
        if self.own_tiles > 1:
            self.of_keys.put(half(slices))
        self._wait()

    def _row(self, i: Expr) -> Expr:
        """The thread's row `i` in the tile."""
        return self.down + i * self.tile.down

    def _score(self, depth: Expr | int, half: Expr | int) -> None:
        """Multiply the queries by a slice of the keys."""
        t = self.tile
        with T.serial(0, t.k_slice // VECTOR) as quad:
            q, k = self._local(t.a * VECTOR), self._local(t.b * VECTOR)
            with T.unroll(0, t.a) as i, T.vectorized(0, VECTOR) as lane:
                at = self._row(i) * stride(self.depth) + depth + quad * VECTOR + lane
                T.buffer_store(q, self.shared[at], [i * VECTOR + lane])
            with T.unroll(0, t.b) as j, T.vectorized(0, VECTOR) as lane:
                at = half + (self.across + j * t.across) * stride(t.k_slice) + quad * VECTOR + lane
                T.buffer_store(k, self.shared[at], [j * VECTOR + lane])
            with T.unroll(0, VECTOR) as lane, T.unroll(0, t.a) as i, T.unroll(0, t.b) as j:
                product = q[i * VECTOR + lane] * k[j * VECTOR + lane]
                T.buffer_store(self.scores, self.scores[i * t.b + j] + product, [i * t.b + j])

    def _masks(self, start: Expr) -> Callable[[Expr, Expr], Expr | None]:
        """The masks of this thread's scores, whose loads are in flight."""
        t, mask = self.tile, self.mask
        if mask is None:
            return lambda i, j: None
        extents = [1] * (4 - len(dims(mask))) + dims(mask)
        rows, columns = (t.a if extents[2] > 1 else 1), (t.b if extents[3] > 1 else 1)
        own_masks = T.alloc_buffer((rows * columns,), str(mask.dtype), scope="local")
        zero = tirx.IntImm("int32", 0)
        with T.unroll(0, rows) as i, T.unroll(0, columns) as j:
            row = tirx.min(self.first_row + self._row(i), self.shape.queries - 1)
            column = tirx.min(start + self.across + j * t.across, self.shape.keys - 1)
            place = [self.head // self.per_batch, self.head % self.per_batch, row, column]
            index = [zero if extent == 1 else at for at, extent in zip(place, extents, strict=True)]
            T.buffer_store(own_masks, mask[tuple(index[4 - len(dims(mask)) :])], [i * columns + j])
        return lambda i, j: own_masks[(i if rows > 1 else 0) * columns + (j if columns > 1 else 0)].astype(self.kept)

    def _scale(self, start: Expr, masks: Callable[[Expr, Expr], Expr | None]) -> None:
        """scale * product + mask; keys that do not exist score -inf."""
        t = self.tile
        with T.unroll(0, t.a) as i, T.unroll(0, t.b) as j:
            value = self.scores[i * t.b + j] * const(self.scale, self.kept)
            masked = masks(i, j)
            value = value if masked is None else value + masked
            if self.shape.keys % t.keys:
                exists = start + self.across + j * t.across < self.shape.keys
                value = tirx.Select(exists, value, const(-math.inf, self.kept))
            T.buffer_store(self.scores, value, [i * t.b + j])

    def _partials_at(self, i: Expr) -> Expr:
        """Where in shared memory the threads' partials of row `i` lie."""
        return self.partials + self._row(i) * stride(self.tile.across)

    def _publish_partial(self, values: tirx.Buffer, count: int, combine: Callable[[Expr, Expr], Expr]) -> None:
        """`combine` of the thread's `count` values of every row, for the threads that share the row."""
        t = self.tile
        with T.unroll(0, t.a) as i:
            value = values[i * count]
            for j in range(1, count):
                value = combine(value, values[i * count + j])
            T.buffer_store(self.shared, value, [self._partials_at(i) + self.across])

    def _reduce_partials(self, i: Expr, combine: Callable[[Expr, Expr], Expr]) -> Expr:
        """`combine` of the threads' partials of row `i`."""
        t = self.tile
        reduced = self._local(VECTOR)
        with T.vectorized(0, VECTOR) as lane:
            T.buffer_store(reduced, self.shared[self._partials_at(i) + lane], [lane])
        with T.unroll(0, t.across // VECTOR - 1) as quad, T.vectorized(0, VECTOR) as lane:
            partials = self.shared[self._partials_at(i) + (quad + 1) * VECTOR + lane]
            T.buffer_store(reduced, combine(reduced[lane], partials), [lane])
        return combine(combine(reduced[0], reduced[1]), combine(reduced[2], reduced[3]))

    def _weigh(self) -> None:
        """Exponentials relative to the new maximum; sums and results so far are rescaled to it."""
        t = self.tile
        with T.unroll(0, t.a) as i:
            top, relative, shrink = (self._local(1) for _ in range(3))
            T.buffer_store(top, tirx.max(self.top[i], self._reduce_partials(i, tirx.max)), [0])
            T.buffer_store(relative, self._finite(top[0]), [0])
            T.buffer_store(shrink, tirx.exp(self.top[i] - relative[0]), [0])
            T.buffer_store(self.top, top[0], [i])
            T.buffer_store(self.sums, self.sums[i] * shrink[0], [i])
            with T.unroll(0, t.b) as j:
                T.buffer_store(self.scores, tirx.exp(self.scores[i * t.b + j] - relative[0]), [i * t.b + j])
                T.buffer_store(self.sums, self.sums[i] + self.scores[i * t.b + j], [i])
                at = self.weights + self._row(i) * stride(t.keys) + self.across + j * t.across
                T.buffer_store(self.shared, self.scores[i * t.b + j], [at])
            with T.unroll(0, self.columns) as e:
                place = i * self.columns + e
                T.buffer_store(self.results, self.results[place] * shrink[0], [place])

    def _average(self, key: Expr | int, half: Expr | int) -> None:
        """Multiply the weights by a slice of the values."""
        t, columns = self.tile, self.columns
        with T.serial(0, t.v_slice // VECTOR) as quad:
            weights = self._local(t.a * VECTOR)
            with T.unroll(0, t.a) as i, T.vectorized(0, VECTOR) as lane:
                at = self.weights + self._row(i) * stride(t.keys) + key + quad * VECTOR + lane
                T.buffer_store(weights, self.shared[at], [i * VECTOR + lane])
            with T.unroll(0, VECTOR) as lane:
                values = self._local(columns)
                for start, extent in self._vectors():
                    with T.vectorized(0, extent) as inner:
                        at = half + (quad * VECTOR + lane) * self.width + self._column(start) + inner
                        T.buffer_store(values, self.shared[at], [start + inner])
                with T.unroll(0, t.a) as i, T.unroll(0, columns) as e:
                    product = weights[i * VECTOR + lane] * values[e]
                    T.buffer_store(self.results, self.results[i * columns + e] + product, [i * columns + e])

    def _vectors(self) -> Iterator[tuple[int, int]]:
        """First and extent of the vectors that the thread's columns make."""
        extent = min(self.columns, VECTOR)
        return ((start, extent) for start in range(0, self.columns, extent))

    def _column(self, start: int) -> Expr:
        """Where in the result the thread's vector at `start` lies: neighbouring threads have neighbouring vectors."""
        return start * self.tile.across + self.across * min(self.columns, VECTOR)

    def _finish(self, results: tirx.Buffer | None, facts: tirx.Buffer | None) -> None:
        """Results over their sums; or both as they are, where other blocks have the other keys."""
        t, s = self.tile, self.shape
        self._publish_partial(self.sums, 1, tirx.max)
        self._wait()
        with T.unroll(0, t.a) as i:
            row = self.first_row + self._row(i)
            factor = self._local(1)
            T.buffer_store(factor, self._reduce_partials(i, lambda x, y: x + y), [0])
            if results is None:
                T.buffer_store(factor, const(1, self.kept) / factor[0], [0])
            with when(inside((row, s.queries, t.rows))):
                for start, extent in self._vectors():
                    column = self._column(start)
                    split = s.width % extent  # a vector lies inside or outside as a whole
                    for first, lanes in [(0, extent)] if not split else [(lane, 1) for lane in range(extent)]:
                        with (
                            when(inside((column + first, s.width, self.width))),
                            T.vectorized(0, lanes) as lane,
                        ):
                            value = self.results[i * self.columns + start + first + lane]
                            self._store(results, row, column + first + lane, value, factor[0])
                if results is not None:
                    place = (self.part * s.heads + self.head) * s.queries + row
                    with when(self.across == 0):
                        T.buffer_store(facts, self.top[i], [2 * place])
                        T.buffer_store(facts, factor[0], [2 * place + 1])

    def _store(self, results: tirx.Buffer | None, row: Expr, column: Expr, value: Expr, factor: Expr) -> None:
        s = self.shape
        if results is None:
            index = (self.head // self.per_batch, self.head % self.per_batch, row, column)
            T.buffer_store(self.y, (value * factor).astype(str(self.y.dtype)), self.views.y.index(index))
        else:
            place = (self.part * s.heads + self.head) * s.queries + row
            T.buffer_store(results, value, [place * s.width + column])

    def _combine_parts(self, results: tirx.Buffer, facts: tirx.Buffer) -> None:
        """The kernel that combines the parts of every row, each relative to a maximum of its own."""
        s = self.shape
        rows = s.heads * s.queries
        with (
            T.launch_thread("blockIdx.x", math.ceil(rows * s.width / ADDERS)) as block,
            T.launch_thread("threadIdx.x", ADDERS) as thread,
        ):
            at = block * ADDERS + thread
            row = at // s.width
            top, total, value, weight = (self._local(1) for _ in range(4))
            with when(inside((at, rows * s.width, ADDERS))):
                for buffer, start in ((top, -math.inf), (total, 0), (value, 0)):
                    self._fill(buffer, start)
                with T.serial(0, self.parts) as part:
                    T.buffer_store(top, tirx.max(top[0], facts[2 * (part * rows + row)]), [0])
                T.buffer_store(top, self._finite(top[0]), [0])
                with T.serial(0, self.parts) as part:
                    place = part * rows + row
                    T.buffer_store(weight, tirx.exp(facts[2 * place] - top[0]), [0])
                    T.buffer_store(total, total[0] + weight[0] * facts[2 * place + 1], [0])
                    T.buffer_store(value, value[0] + weight[0] * results[part * (rows * s.width) + at], [0])
                head = row // s.queries
                index = (head // self.per_batch, head % self.per_batch, row % s.queries, at % s.width)
                T.buffer_store(self.y, (value[0] / total[0]).astype(str(self.y.dtype)), self.views.y.index(index))

    def _finite(self, top: Expr) -> Expr:
        """What exponentials are taken relative to: zero where all scores are -inf, so that they vanish."""
        return tirx.Select(top == const(-math.inf, self.kept), const(0, self.kept), top)

    def _fill(self, buffer: tirx.Buffer, value: float) -> None:
        with T.unroll(0, dims(buffer)[0]) as i:
            T.buffer_store(buffer, const(value, self.kept), [i])

    def _wait(self) -> None:
        T.evaluate(T.tvm_storage_sync("shared"))
