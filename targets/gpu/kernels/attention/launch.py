"""The tiles of attention on CUDA cores: what fits the device, and an estimate of its seconds."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

from graphopt.program.program import ITEM_BYTES
from graphopt.targets.common.kernels.blocks import round_up
from graphopt.targets.gpu.code import RESIDENT, SYNCHRONIZED
from graphopt.targets.gpu.devices import GpuSpec
from graphopt.targets.gpu.waves import (
    CLOCK,
    INSTRUCTIONS,
    L2_LOAD_BYTES,
    adding_seconds,
    fitting_blocks,
    overlapped,
    waves,
)

VECTOR = 4
"""Elements of a load."""

STATIC = 48 << 10
"""Bytes of shared memory that a CUDA kernel may have without asking for more at its launch."""

WAITING = 32
"""Elements of the next slice that a thread may hold in registers while they are in flight."""


@dataclass(frozen=True, slots=True)
class Shape:
    """q[heads, queries, depth], k[heads, keys, depth], v[heads, keys, width]; sums are of `kept`, a float type.

    Query s sees no keys beyond s + `causal_offset`, but some before: a causal mask. None where that is not known.
    """

    heads: int
    queries: int
    keys: int
    depth: int
    width: int
    kept: str
    causal_offset: int | None = None

    def visible(self, rows: int, keys: int) -> float:
        """The share of all tiles of `keys` that tiles of `rows` queries go through."""
        tiles = math.ceil(self.keys / keys)
        starts = range(0, self.queries, rows)
        return sum(self.tiles_of(start, rows, keys) for start in starts) / (len(starts) * tiles)

    def tiles_of(self, first_row: int, rows: int, keys: int) -> int:
        """How many tiles of `keys`, from the first on, `rows` queries from `first_row` on see something of."""
        tiles = math.ceil(self.keys / keys)
        if self.causal_offset is None:
            return tiles
        return min(tiles, (min(first_row + rows, self.queries) - 1 + self.causal_offset) // keys + 1)


class AnyTile(Protocol):
    """A tile of attention on whatever units."""

    def resident(self, shape: Shape, device: GpuSpec) -> int:
        """Resident blocks per multiprocessor."""


def attributes(shape: Shape, tile: AnyTile, device: GpuSpec) -> dict[str, int]:
    """Attributes of a function that computes attention: its barriers are complete, and its resident blocks."""
    return {SYNCHRONIZED: 1, RESIDENT: tile.resident(shape, device)}


@dataclass(frozen=True, slots=True)
class Tile:
    """A block takes `rows` queries and goes through `keys` at a time; a thread has a x b of these scores.

    Keys arrive in slices of `k_slice` of their elements, values in slices of `v_slice`. `split` blocks share a row.
    """

    rows: int
    keys: int
    a: int
    b: int
    k_slice: int = 0
    v_slice: int = 0
    split: int = 1

    @property
    def down(self) -> int:
        """Threads that share the rows."""
        return self.rows // self.a

    @property
    def across(self) -> int:
        """Threads that share the keys, then the columns of the result."""
        return self.keys // self.b

    @property
    def threads(self) -> int:
        """Threads per block."""
        return self.down * self.across

    def columns(self, shape: Shape) -> int:
        """Columns of the result that a thread computes."""
        own = math.ceil(shape.width / self.across)
        return own if own <= 2 else round_up(own, VECTOR)

    def elements(self, shape: Shape) -> tuple[int, int, int, int]:
        """Elements of shared memory: queries, half of the slices, weights, and the partials of threads."""
        half = max(self.keys * stride(self.k_slice), self.v_slice * self.columns(shape) * self.across)
        depth = round_up(shape.depth, self.k_slice)
        return self.rows * stride(depth), half, self.rows * stride(self.keys), self.rows * stride(self.across)

    def shared(self, shape: Shape) -> int:
        """Bytes of shared memory."""
        q, half, weights, partials = self.elements(shape)
        return ITEM_BYTES[shape.kept] * (q + 2 * half + weights + partials)

    def waiting(self, shape: Shape) -> int:
        """Elements of a slice that a thread holds in flight."""
        return max(self.keys * self.k_slice, self.v_slice * self.columns(shape) * self.across) // self.threads

    def registers(self, shape: Shape) -> int:
        """Registers per thread, about: scores and operands, results, a slice in flight, addresses."""
        columns = self.columns(shape)
        words = self.a * (self.b + columns + VECTOR + 2) + max(VECTOR * self.b, columns) + self.waiting(shape)
        return words * ITEM_BYTES[shape.kept] // 4 + 48

    def resident(self, shape: Shape, device: GpuSpec) -> int:
        """Resident blocks on a multiprocessor, by registers and by shared memory."""
        return fitting_blocks(self.threads, round_up(self.registers(shape), 8), self.shared(shape), device)


TILES = (
    Tile(128, 64, 8, 4),
    Tile(64, 64, 8, 4),
    Tile(64, 64, 4, 4),
    Tile(32, 64, 4, 4),
    Tile(32, 64, 2, 4),
    Tile(32, 32, 4, 2),
    Tile(16, 64, 4, 4),
    Tile(16, 64, 2, 4),
    Tile(16, 32, 2, 2),
    Tile(8, 64, 2, 4),
    Tile(8, 32, 1, 2),
    Tile(4, 64, 1, 4),
    Tile(4, 32, 1, 2),
    Tile(1, 128, 1, 4),
    Tile(1, 64, 1, 2),
)

SPLITS = (1, 2, 4, 8, 16, 32)


def stride(extent: int) -> int:
    """Elements from one row in shared memory to the next: an odd number of vectors."""
    vectors = math.ceil(extent / VECTOR)
    return VECTOR * (vectors + 1 - vectors % 2)


def tiles(shape: Shape, device: GpuSpec) -> list[Tile]:
    """The tiles that fit the device, the best by estimate first; none where even the smallest does not."""
    # At most what leaves room for two resident blocks.
    limit = min(device.shared_per_block, device.shared_per_multiprocessor // 2 - 1024)
    candidates = []
    for tile in TILES:
        if tile.threads > device.threads_per_block or tile.a * tile.columns(shape) * ITEM_BYTES[shape.kept] > 384:
            continue
        fitted = sliced(tile, shape, limit)
        if fitted is not None:
            most = math.ceil(shape.keys / tile.keys)
            candidates += [replace(fitted, split=split) for split in SPLITS if split == 1 or 2 * split <= most]
    return sorted(candidates, key=lambda tile: seconds(shape, tile, device))


def sliced(tile: Tile, shape: Shape, limit: int) -> Tile | None:
    """The tile with the fewest slices that fit `limit` bytes and leave registers for the sums."""
    sizes = (128, 64, 32, 16, 8, 4)
    depth = round_up(shape.depth, VECTOR)
    # a `k_slice` that does not divide the depth would pad it: the last slices are of little use
    k_slices = dict.fromkeys([*([depth] if depth <= 64 else []), *(s for s in sizes if s < round_up(depth, 16))])
    fitting = [
        candidate
        for k_slice in k_slices
        for v_slice in sizes
        if v_slice <= tile.keys
        for candidate in [replace(tile, k_slice=k_slice, v_slice=v_slice)]
        if candidate.shared(shape) <= limit and (candidate.waiting(shape) <= WAITING or (k_slice == v_slice == VECTOR))
    ]

    def slices(candidate: Tile) -> tuple[int, int]:
        return math.ceil(shape.depth / candidate.k_slice) + tile.keys // candidate.v_slice, candidate.shared(shape)

    return min(fitting, key=slices, default=None)


def seconds(shape: Shape, tile: Tile, device: GpuSpec) -> float:
    """An estimate: waves of blocks, each bound by arithmetic, by shared memory, or by waiting for its slices."""
    blocks = shape.heads * math.ceil(shape.queries / tile.rows) * tile.split
    grid = waves(blocks, tile.resident(shape, device), device)
    columns = tile.columns(shape)
    depth, keys = round_up(shape.depth, tile.k_slice), math.ceil(shape.keys / tile.keys / tile.split)
    threads = grid.resident_blocks * tile.threads
    products = tile.a * (tile.b * depth + columns * tile.keys + 24 * tile.b) * (max(threads, INSTRUCTIONS) + 64)
    # A vector of q or of weights goes to all threads of a row at once; one of k or v to all rows of a warp.
    rows, shared = 32 / tile.across, min(1.0, tile.across / 32)
    once = tile.a * max(rows, 1.0) / 8
    loads = threads * (depth * (once + tile.b * shared) + tile.keys * (once + columns * shared))
    fetched = grid.resident_blocks * tile.keys * (shape.depth + shape.width) * ITEM_BYTES[shape.kept]
    slices = depth // tile.k_slice + tile.keys // tile.v_slice
    waiting = 300.0 + 400 * slices  # the second-level cache is 400 cycles away
    step = overlapped(products / INSTRUCTIONS, loads / 32, fetched / L2_LOAD_BYTES, waiting)
    cycles = grid.count * (keys * shape.visible(tile.rows, tile.keys) + 1) * step
    return cycles / CLOCK + adding_seconds(tile.split, shape.heads * shape.queries * shape.width, device)
