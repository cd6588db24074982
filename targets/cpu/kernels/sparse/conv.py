"""Convolutions with block-sparse weights on the channel-blocked layout, without im2col.

    y[n, g, oh, ow, :] = bias[g, :] + sum over blocks b of group g of
                         x[n, offsets[b] + (oh * sh * W + ow * sw) * bi] * blocks[b, :]

`offsets[b]` is where the channel and the tap of a block lie in the padded image, so that every kernel, stride and
dilation is the same loop: a line of weights is loaded, and multiplied with one number of each position of a tile.
Tasks go over all tiles with one range of groups, whose blocks stay in the cache meanwhile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tvm import s_tir, te, tirx
from tvm.ir import Expr
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from graphopt.targets.common.kernels.anchored import Anchored, read
from graphopt.targets.common.kernels.blocks import RULE, Block, const, dims
from graphopt.targets.common.kernels.guards import when
from graphopt.targets.cpu.kernels.sparse.accumulate import Accumulator
from graphopt.targets.cpu.kernels.sparse.definition import operands_of
from graphopt.targets.cpu.kernels.tiling import padded_tile
from graphopt.targets.cpu.machine import CpuMachine

NAME = "sparse_conv"

BESIDE = 3
"""Registers beside the sums: a line of weights, a broadcast, and one to spare."""


@dataclass(frozen=True, slots=True)
class Window:
    """A window on a padded image of `image` rows and columns with blocks of `block` channels."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    image: tuple[int, int]
    block: int

    @property
    def steps(self) -> tuple[int, int]:
        """Elements from one output row, and from one output column, to the next."""
        return self.strides[0] * self.image[1] * self.block, self.strides[1] * self.block

    @property
    def flat(self) -> bool:
        """Whether all positions of the map are one row."""
        return self.kernel == self.strides == (1, 1)

    def offsets(self, starts: NDArray[np.integer]) -> NDArray[np.int32]:
        """Where inputs, channel * kh * kw + row * kw + column, lie in an image."""
        channel, tap = np.divmod(starts, math.prod(self.kernel))
        row, column = np.divmod(tap, self.kernel[1])
        outer, lane = np.divmod(channel, self.block)
        rows = outer * self.image[0] + row * self.dilations[0]
        return np.asarray((rows * self.image[1] + column * self.dilations[1]) * self.block + lane, np.int32)


def tile_of(out: tuple[int, int], flat: bool, machine: CpuMachine) -> tuple[int, int]:
    """Rows and columns of a register tile: the fewest loads, and few positions computed twice."""
    limit = machine.level.registers - BESIDE
    if flat:
        return 1, padded_tile(math.prod(out), limit)
    tiles = [(min(out[0], limit // columns), columns) for columns in range(1, min(out[1], limit) + 1)]

    def cost(tile: tuple[int, int]) -> float:
        count = math.ceil(out[0] / tile[0]) * math.ceil(out[1] / tile[1])
        return count * (max(math.prod(tile), 8) + 2)

    return min(tiles, key=cost)


def tiles(out: tuple[int, int], flat: bool, tile: tuple[int, int]) -> int:
    """Tiles of one image."""
    rows, columns = (1, math.prod(out)) if flat else out
    return math.ceil(rows / tile[0]) * math.ceil(columns / tile[1])


def compute(
    x: te.Tensor,
    blocks: te.Tensor,
    offsets: te.Tensor,
    order: te.Tensor,
    bias: te.Tensor,
    shape: tuple[int, ...],
    window: Window,
    tile: tuple[int, int],
    longest: int,
) -> te.Tensor:
    """The convolution, [N, groups, OH, OW, bn] = `shape`.

    Args:
        x: [N, elements of a padded image].
        blocks: [B, 1, bn].
        offsets: [B].
        order: see `definition.order`.
        bias: [groups, bn].
        tile: rows and columns of the register tile.
        longest: blocks of the longest group.
    """
    down, across = window.steps
    j = te.reduce_axis((0, longest), "j")

    def element(n: Expr, group: Expr, y: Expr, z: Expr, lane: Expr) -> Expr:
        block = order[group] + j
        product = x[n, offsets[block] + y * down + z * across] * blocks[block, 0, lane]
        return te.sum(tirx.if_then_else(block < order[group + 1], product, const(0, blocks.dtype)), axis=[j])

    notes = {
        RULE: NAME,
        "graphopt.tile": list(tile),
        "graphopt.steps": [down, across],
        "graphopt.flat": int(window.flat),
    }
    sums = te.compute(shape, element, name="conv", attrs=notes)
    return te.compute(shape, lambda n, g, y, z, lane: sums[n, g, y, z, lane] + bias[g, lane], name="bias")


def schedule(sch: s_tir.Schedule, anchor: Block, _machine: CpuMachine) -> tirx.PrimFunc:
    """The function with loops that end where a group does: a task for each tile of positions and range of groups."""
    notes = sch.get(anchor.rv).annotations
    function = read(sch, anchor)
    if function.extents != function.total_extents:
        raise ValueError("what follows it changes the shape of its result")
    height, width = (int(extent) for extent in notes["graphopt.tile"])
    down, across = (int(step) for step in notes["graphopt.steps"])
    flat = bool(int(notes["graphopt.flat"]))
    return function.function.with_body(
        _Loops(function, (height, width), (down, across), flat, anchor.reduce[0]).statement()
    )


class _Loops:
    """Emits the loops."""

    def __init__(
        self, function: Anchored, tile: tuple[int, int], steps: tuple[int, int], flat: bool, longest: int
    ) -> None:
        self.function, self.tile, self.steps, self.flat, self.longest = function, tile, steps, flat, longest
        self.x, self.blocks, self.offsets, self.order = operands_of(function)
        self.images, self.groups, rows, self.columns, self.lanes = function.total_extents
        self.out = (1, rows * self.columns) if flat else (rows, self.columns)
        self.size = math.prod(tile)

    def statement(self) -> tirx.Stmt:
        """The body of the function."""
        count = tuple(math.ceil(extent / size) for extent, size in zip(self.out, self.tile, strict=True))
        places = self.images * math.prod(count)
        parts = dims(self.order)[0] - self.groups - 2
        with IRBuilder() as builder:
            with T.prim_func(s_tir=True):
                T.func_name("main")
                with T.parallel(0, places * parts) as task:
                    part, place = tirx.floordiv(task, places), tirx.floormod(task, places)
                    image = tirx.floordiv(place, math.prod(count))
                    row, column = (
                        tirx.floormod(tirx.floordiv(place, count[1]), count[0]),
                        tirx.floormod(place, count[1]),
                    )
                    wanted = row * self.tile[0], column * self.tile[1]
                    # The last tile begins where it ends with the map; what the tile before it stores it does not.
                    first = tuple(
                        T.bind(tirx.min(at, extent - size) if extent % size else at)
                        for at, extent, size in zip(wanted, self.out, self.tile, strict=True)
                    )
                    bounds = self.groups + 1 + part
                    with T.serial(self._bound(bounds), self._bound(bounds + 1)) as group:
                        self._group(image, group, wanted, first)
            return builder.get().body

    def _bound(self, at: Expr) -> Expr:
        return self.order[at].astype(self.function.index)

    def _group(self, image: Expr, group: Expr, wanted: tuple[Expr, ...], first: tuple[Expr, ...]) -> None:
        """Sum up and store one group for a tile that begins at `first`; what lies before `wanted` is not stored."""
        down, across = self.steps
        base = T.bind(first[0] * down + first[1] * across)

        def term(block: Expr, step: Expr, offset: Expr, at: int, lane: Expr) -> Expr:
            y, z = divmod(at, self.tile[1])
            return self.blocks[block, step, lane] * self.x[image, offset + base + (y * down + z * across)]

        def start(block: Expr) -> Expr:
            return self.offsets[block].astype(self.function.index)

        begin, end = T.bind(self._bound(group)), T.bind(self._bound(group + 1))
        sums = Accumulator(self.function.dtype, self.size, self.lanes, 1, self.longest, start, term).emit(begin, end)
        for at in range(self.size):
            y, z = (begin + step for begin, step in zip(first, divmod(at, self.tile[1]), strict=True))
            new = [
                place >= begin
                for place, begin, extent, size in zip((y, z), wanted, self.out, self.tile, strict=True)
                if extent % size
            ]
            where = (tirx.floordiv(z, self.columns), tirx.floormod(z, self.columns)) if self.flat else (y, z)
            with when(tirx.all(*new) if new else None), T.vectorized(0, self.lanes) as lane:
                T.buffer_store(*self.function.store([image, group, *where, lane], sums[at * self.lanes + lane]))
