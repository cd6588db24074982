"""The tiles of attention on tensor cores: what fits the device, and an estimate of its seconds."""

from __future__ import annotations

import math
from dataclasses import dataclass

from graphopt.targets.common.kernels.blocks import round_up
from graphopt.targets.gpu.devices import GpuSpec
from graphopt.targets.gpu.kernels.attention.launch import Shape
from graphopt.targets.gpu.kernels.gemm.epilogue_store import ROWS
from graphopt.targets.gpu.kernels.gemm.mma import HOPPER_MMA
from graphopt.targets.gpu.waves import (
    CLOCK,
    EXPONENTIALS,
    INSTRUCTIONS,
    L2_COPY_BYTES,
    SHARED_BYTES,
    fitting_blocks,
    overlapped,
    tensor_core_rate,
    waves,
)

WIDEST = 128
"""Elements of a row of q, or of the result, that a warp's registers hold."""

CHUNK = 8
"""fp16 or bf16 elements per 16 bytes."""


@dataclass(frozen=True, slots=True)
class Tile:
    """A block of `warps` takes 16 queries each, and goes through `keys` at a time. Written "64x64"."""

    warps: int
    keys: int

    @property
    def rows(self) -> int:
        """Queries per block."""
        return self.warps * ROWS

    @property
    def threads(self) -> int:
        """Threads per block."""
        return self.warps * 32

    def elements(self, shape: Shape) -> tuple[int, int, int]:
        """Elements of shared memory: queries, one tile of keys, one of values."""
        deep, wide = stride(shape.depth), stride(shape.width)
        return self.rows * deep, self.keys * deep, self.keys * wide

    def shared(self, shape: Shape) -> int:
        """Bytes of shared memory."""
        queries, keys, values = self.elements(shape)
        return 2 * (queries + 2 * (keys + values))

    def registers(self, shape: Shape) -> int:
        """Registers per thread, about: queries, scores, results, operands, addresses."""
        depth, width = padded(shape.depth), padded(shape.width)
        return depth // 4 + self.keys // 2 + self.keys // 4 + width // 2 + self.keys // 4 + 56

    def resident(self, shape: Shape, device: GpuSpec) -> int:
        """Resident blocks on a multiprocessor."""
        return fitting_blocks(self.threads, round_up(self.registers(shape), 8), self.shared(shape), device)

    def __str__(self) -> str:
        """The tile as it is written."""
        return f"{self.rows}x{self.keys}"


TILES = (Tile(4, 64), Tile(8, 64), Tile(4, 32), Tile(8, 32), Tile(2, 64), Tile(2, 32), Tile(1, 64), Tile(1, 32))


def padded(extent: int) -> int:
    """Elements of a row as steps of the cores count them."""
    return round_up(extent, 2 * CHUNK)


def stride(extent: int) -> int:
    """Elements from one row in shared memory to the next: an odd number of chunks, so that rows differ in banks."""
    return padded(extent) + CHUNK


def fits(shape: Shape) -> bool:
    """Whether rows can be copied 16 bytes at a time and kept in registers."""
    return all(extent % CHUNK == 0 and extent <= WIDEST for extent in (shape.depth, shape.width))


def tiles(shape: Shape, device: GpuSpec, kind: str) -> list[Tile]:
    """The tiles that fit the device, the best by estimate first."""
    if not fits(shape):
        return []
    fitting = [tile for tile in TILES if tile.shared(shape) <= device.shared_per_block]
    return sorted(fitting, key=lambda tile: seconds(shape, tile, device, kind))


def seconds(shape: Shape, tile: Tile, device: GpuSpec, kind: str) -> float:
    """An estimate: waves of blocks, each bound by the cores, by exponentials, by shared memory, or by waiting."""
    blocks = shape.heads * math.ceil(shape.queries / tile.rows)
    grid = waves(blocks, tile.resident(shape, device), device)
    deep, wide = padded(shape.depth), padded(shape.width)
    reached = HOPPER_MMA if device.capability >= 90 else 1.0
    flops = grid.resident_blocks * 2 * tile.rows * tile.keys * (deep + wide)
    cores = flops / (tensor_core_rate(kind, device) * reached)
    # an exponential and some 10 other instructions for a score
    scores = grid.resident_blocks * tile.rows * tile.keys * (1 / EXPONENTIALS + 10 / INSTRUCTIONS)
    shared = grid.resident_blocks * 2 * tile.keys * (deep + wide) * (tile.warps + 1) / SHARED_BYTES
    fetched = grid.resident_blocks * 2 * tile.keys * (deep + wide) / L2_COPY_BYTES
    chain = 600.0 + (cores + scores) / grid.resident_blocks  # a warp's dependent chain, which others must hide
    slices = math.ceil(shape.keys / tile.keys) * shape.visible(tile.rows, tile.keys)
    return grid.count * ((slices + 1) * overlapped(cores + scores, shared, fetched, chain) + 1500) / CLOCK
