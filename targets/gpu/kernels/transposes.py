"""Changes between planar and blocked tensors: tiles of pixels and channels through shared memory.

Both sides are read and written by neighbouring threads at neighbouring addresses; a row of the tile is one element
longer than it holds, so that its columns lie in different banks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tvm import te, tirx
from tvm.ir import Expr
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from graphopt.targets.common.kernels.blocks import const
from graphopt.targets.common.kernels.guards import inside, when

PIXELS = 64
"""Pixels per tile, which holds one block of channels of each."""

THREADS = 256


@dataclass(frozen=True, slots=True)
class Transpose:
    """Planes [images, channels, pixels] to or from pixels [images, blocks, pixels, block]; `width` pixels are a row."""

    images: int
    channels: int
    pixels: int
    width: int
    block: int
    dtype: str
    to_blocked: bool

    @property
    def blocks(self) -> int:
        """Blocks of channels."""
        return -(-self.channels // self.block)


def to_blocked(shape: Sequence[int], block: int, dtype: str) -> Transpose:
    """x[N, C, H, W] to blocks."""
    return Transpose(shape[0], shape[1], shape[2] * shape[3], shape[3], block, dtype, True)


def from_blocked(shape: Sequence[int], block: int, dtype: str) -> Transpose:
    """The inverse, to y[N, C, H, W]."""
    return Transpose(shape[0], shape[1], shape[2] * shape[3], shape[3], block, dtype, False)


def compute(x: te.Tensor, t: Transpose, shape: tuple[int, ...], most: int) -> te.Tensor:
    """The TE tensor; `most` is the largest number of threads of a block. The function holds all its barriers."""
    threads = min(THREADS, most)
    return te.extern([shape], [x], lambda ins, outs: _kernel(ins[0], outs[0], t, threads), dtype=[t.dtype])


def _kernel(x: tirx.Buffer, y: tirx.Buffer, t: Transpose, threads: int) -> tirx.Stmt:
    row = PIXELS + 1
    parts = math.ceil(t.pixels / PIXELS)
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("main")
            with (
                T.launch_thread("blockIdx.x", t.images * t.blocks * parts) as block,
                T.launch_thread("threadIdx.x", threads) as thread,
            ):
                tile = T.alloc_buffer((t.block * row,), t.dtype, scope="shared")
                first, image, group = block % parts * PIXELS, block // (parts * t.blocks), block // parts % t.blocks
                for reading in (True, False):
                    planar = reading == t.to_blocked
                    for turn in range(math.ceil(t.block * PIXELS / threads)):
                        item = thread + turn * threads
                        pixel, lane = (item % PIXELS, item // PIXELS) if planar else (item // t.block, item % t.block)
                        at, channel = first + pixel, group * t.block + lane
                        idle = item < t.block * PIXELS if (turn + 1) * threads > t.block * PIXELS else None
                        there = inside((at, t.pixels, PIXELS), (channel, t.channels, t.block)) if planar else inside(
                            (at, t.pixels, PIXELS)
                        )  # fmt: skip
                        in_tile = lane * row + pixel
                        place = _planar(t, image, channel, at) if planar else _blocked(t, image, group, at, lane)
                        if reading:
                            value = x[tuple(place)]
                            if there is not None:
                                value = tirx.if_then_else(there, value, const(0, t.dtype))
                            with when(idle):
                                T.buffer_store(tile, value, [in_tile])
                        else:
                            conditions = [each for each in (idle, there) if each is not None]
                            with when(tirx.all(*conditions) if conditions else None):
                                T.buffer_store(y, tile[in_tile], place)
                    if reading:
                        T.evaluate(T.tvm_storage_sync("shared"))
        return builder.get().body


def _planar(t: Transpose, image: Expr, channel: Expr, at: Expr) -> list[Expr]:
    return [image, channel, at // t.width, at % t.width]


def _blocked(t: Transpose, image: Expr, group: Expr, at: Expr, lane: Expr) -> list[Expr]:
    return [image, group, at // t.width, at % t.width, lane]
