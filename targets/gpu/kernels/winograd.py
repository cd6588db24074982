"""Winograd convolution F(m x m, 3 x 3) on blocked tensors: the transforms, between which lies one batched GEMM.

    V[t, p, c]  = (B^T d B)[t]                        t: taps of a tile, (m+2)^2; p: tiles of all images; c: channels
    M[t, p, o]  = sum over c of V[t, p, c] U[t, c, o]          the GEMM: t is its batch
    y[tile p]   = A^T M A + bias, and whatever TVM fused behind it

A thread transforms one tile of one channel, neighbouring threads neighbouring channels, so that all reads and writes
are of neighbouring addresses. The matrices are constants of the code: their zeros and ones cost nothing.

Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks" (2016).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import s_tir, te, tirx
from tvm.ir import Expr
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from graphopt.ops.winograd import matrices
from graphopt.targets.common.kernels import anchored
from graphopt.targets.common.kernels.blocks import RULE, Block, blocks_of, const, dims
from graphopt.targets.common.kernels.guards import inside, when
from graphopt.targets.gpu.code import RESIDENT, SYNCHRONIZED, handwritten
from graphopt.targets.gpu.devices import GpuSpec

NAME = "gpu.winograd"

THREADS = 128

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Tiles:
    """The m x m tiles of `images` output planes of `out`."""

    m: int
    images: int
    out: tuple[int, int]

    @property
    def rows(self) -> int:
        """Rows of tiles in a plane."""
        return -(-self.out[0] // self.m)

    @property
    def columns(self) -> int:
        """Columns of tiles in a plane."""
        return -(-self.out[1] // self.m)

    @property
    def count(self) -> int:
        """Tiles in all images."""
        return self.images * self.rows * self.columns

    @property
    def taps(self) -> int:
        """Elements of a transformed tile."""
        return (self.m + 2) ** 2

    def place(self, p: Expr) -> tuple[Expr, Expr, Expr]:
        """Image, first output row, first output column of tile p."""
        plane = self.rows * self.columns
        return p // plane, p // self.columns % self.rows * self.m, p % self.columns * self.m


def attributes(tiles: Tiles) -> dict[str, int]:
    """Attributes of the function that holds `transform_input`."""
    return {SYNCHRONIZED: 1, RESIDENT: resident(tiles)}


def resident(tiles: Tiles) -> int:
    """Resident blocks on a multiprocessor: a thread keeps about twice the values of a tile."""
    return max(1, 65536 // (THREADS * min(255, 2 * tiles.taps + 40)))


def transform_input(x: te.Tensor, tiles: Tiles, pads: Sequence[int], most: int) -> te.Tensor:
    """V[(m+2)^2, P, CB * b] of x[N, CB, H, W, b]; outside the image are zeros. The function needs `attributes`.

    Args:
        pads: above and to the left.
        most: threads that a block may have.
    """
    _, blocks, _, _, lanes = dims(x)
    shape = (tiles.taps, tiles.count, blocks * lanes)
    return te.extern(
        [shape],
        [x],
        lambda ins, outs: _input(ins[0], outs[0], tiles, pads, min(THREADS, most)),
        dtype=[str(x.dtype)],
        name="winograd_input",
    )


def _input(x: tirx.Buffer, v: tirx.Buffer, tiles: Tiles, pads: Sequence[int], threads: int) -> tirx.Stmt:
    _, blocks, height, width, lanes = dims(x)
    channels, size, dtype = blocks * lanes, tiles.m + 2, str(x.dtype)
    _, _, bt = matrices(tiles.m)
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("main")
            with _each(tiles.count * channels, threads) as (at, exists):
                p, channel = at // channels, at % channels
                image, row, column = tiles.place(p)
                read = T.alloc_buffer((size * size,), dtype, scope="local")
                half = T.alloc_buffer((size * size,), dtype, scope="local")
                with when(exists):
                    for i in range(size):
                        for j in range(size):
                            y, z = row + (i - pads[0]), column + (j - pads[1])
                            within = tirx.all(y >= 0, y < height, z >= 0, z < width)
                            value = x[image, channel // lanes, y, z, channel % lanes]
                            value = tirx.if_then_else(within, value, const(0, dtype))
                            T.buffer_store(read, value, [i * size + j])
                    _transform(bt, size, lambda i, j: read[i * size + j], _into(half, size))
                    _transform(
                        bt,
                        size,
                        lambda j, i: half[i * size + j],
                        lambda j, i, value: T.buffer_store(v, value, [i * size + j, p, channel]),
                    )
        return builder.get().body


def transform_output(mm: te.Tensor, tiles: Tiles, out: tuple[int, ...]) -> te.Tensor:
    """y[N, CB, OH, OW, b] of M[(m+2)^2, P, CB * b], as a definition that `emit` makes a kernel of."""
    m, size, lanes = tiles.m, tiles.m + 2, out[4]
    dtype = str(mm.dtype)
    rt = te.reduce_axis((0, size * size), "t")
    at, _, _ = matrices(m)

    def entry(row: Expr, column: Expr) -> Expr:
        result: Expr = const(0, dtype)
        for i in range(m):
            for j in range(size):
                if at[i, j]:
                    result = tirx.Select(tirx.all(row == i, column == j), const(float(at[i, j]), dtype), result)
        return result

    totals = te.compute(
        (tiles.count, m, m, out[1] * lanes),
        lambda p, i, j, c: te.sum(mm[rt, p, c] * entry(i, rt // size) * entry(j, rt % size), axis=[rt]),
        name="winograd_output",
        attrs={RULE: NAME},
    )

    def finish(n: Expr, block: Expr, y: Expr, z: Expr, lane: Expr) -> te.TensorSlice:
        p = (n * tiles.rows + tirx.floordiv(y, m)) * tiles.columns + tirx.floordiv(z, m)
        return totals[p, tirx.floormod(y, m), tirx.floormod(z, m), block * lanes + lane]

    return te.compute(out, finish, name="finish")


def lanes(sch: s_tir.Schedule) -> int:
    """Channels per block of what the last block of a function writes."""
    return blocks_of(sch)[-1].spatial[-1]


def emit(sch: s_tir.Schedule, anchor: Block, device: GpuSpec) -> tirx.PrimFunc:
    """The function of `transform_output` and an epilogue, a thread for each tile and channel.

    Raises:
        ValueError: it is not made of these.
    """
    reduction = anchored.read(sch, anchor)
    count, m, _, channels = anchor.spatial
    matrix, _, _ = matrices(m)
    size = m + 2
    (source,) = reduction.sources
    out = reduction.extents
    tiles = Tiles(m, out[0], (out[2], out[3]))
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("main")
            with _each(count * channels, min(THREADS, device.threads_per_block)) as (at, exists):
                p, channel = at // channels, at % channels
                image, row, column = tiles.place(p)
                half = T.alloc_buffer((m * size,), reduction.dtype, scope="local")
                results = T.alloc_buffer((m * m,), reduction.dtype, scope="local")
                with when(exists):
                    _transform(matrix, size, lambda i, j: source[i * size + j, p, channel], _into(half, size))
                    _transform(matrix, m, lambda j, i: half[i * size + j], lambda j, i, v: _put(results, v, i * m + j))
                    for i in range(m):
                        for j in range(m):
                            y, z = row + i, column + j
                            with when(inside((y, out[2], m), (z, out[3], m))):
                                place = [image, channel // out[4], y, z, channel % out[4]]
                                T.buffer_store(*reduction.store(place, results[i * m + j]))
        return handwritten(reduction.function, builder.get().body, resident(tiles))


class _each:  # noqa: N801  a context manager, read as a word
    """Threads 0 .. count - 1, one after the other in memory; gives the number, and whether it exists."""

    def __init__(self, count: int, threads: int) -> None:
        self.count, self.threads = count, threads

    def __enter__(self) -> tuple[Expr, Expr | None]:
        self.block = T.launch_thread("blockIdx.x", math.ceil(self.count / self.threads))
        self.thread = T.launch_thread("threadIdx.x", self.threads)
        at = self.block.__enter__() * self.threads + self.thread.__enter__()
        return at, inside((at, self.count, self.threads))

    def __exit__(self, *error: Any) -> None:
        self.thread.__exit__(*error)
        self.block.__exit__(*error)


def _into(buffer: tirx.Buffer, size: int) -> Callable[[int, int, Expr], None]:
    return lambda i, j, value: _put(buffer, value, i * size + j)


def _put(buffer: tirx.Buffer, value: Expr, place: int) -> None:
    T.buffer_store(buffer, value, [place])


def _transform(
    matrix: Matrix, columns: int, read: Callable[[int, int], Expr], put: Callable[[int, int, Expr], None]
) -> None:
    """put(i, j, sum over k of matrix[i, k] read(k, j)) for every column j; as few operations as the entries allow."""
    rows, depth = matrix.shape
    for j in range(columns):
        for i in range(rows):
            total: Expr | None = None
            for k in range(depth):
                factor = float(matrix[i, k])
                if factor == 0.0:
                    continue
                value = read(k, j)
                if abs(factor) != 1.0:
                    value = value * const(abs(factor), str(value.ty.dtype))
                if total is None:
                    total = value if factor > 0 else const(0, str(value.ty.dtype)) - value
                else:
                    total = total + value if factor > 0 else total - value
            put(i, j, total)
