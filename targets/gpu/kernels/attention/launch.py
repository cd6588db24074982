"""How the work of attention is cut on a GPU: what fits the device, and what it would take."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from graphopt.program.program import ITEM_BYTES
from graphopt.targets.common.kernels.blocks import round_up
from graphopt.targets.gpu.devices import CLOCK, Device

VECTOR = 4
"""Elements of a load."""

STATIC = 48 << 10
"""Bytes of shared memory that a CUDA kernel may have without asking for more at its launch."""

WAITING = 32
"""Elements of the next slice that a thread may hold in registers."""


@dataclass(frozen=True, slots=True)
class Shape:
    """q[heads, queries, depth], k[heads, keys, depth], v[heads, keys, width]; sums are of `kept`, a float type.

    Query s sees no keys beyond s + `reach`, but some before: a causal mask. None where that is not known.
    """

    heads: int
    queries: int
    keys: int
    depth: int
    width: int
    kept: str
    reach: int | None = None

    def visible(self, rows: int, keys: int) -> float:
        """The share of all tiles of `keys` that tiles of `rows` queries go through."""
        tiles = math.ceil(self.keys / keys)
        starts = range(0, self.queries, rows)
        return sum(self.tiles_of(start, rows, keys) for start in starts) / (len(starts) * tiles)

    def tiles_of(self, first_row: int, rows: int, keys: int) -> int:
        """How many tiles of `keys`, from the first on, `rows` queries from `first_row` on see something of."""
        tiles = math.ceil(self.keys / keys)
        if self.reach is None:
            return tiles
        return min(tiles, (min(first_row + rows, self.queries) - 1 + self.reach) // keys + 1)


@dataclass(frozen=True, slots=True)
class Tile:
    """A block takes `rows` queries and goes through `keys` at a time; a thread has a x b of these scores.

    Keys arrive in slices of `deep` of their elements, values in slices of `some` of them. `split` blocks share a row.
    """

    rows: int
    keys: int
    a: int
    b: int
    deep: int = 0
    some: int = 0
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
        """Of a block."""
        return self.down * self.across

    def columns(self, shape: Shape) -> int:
        """Columns of the result that a thread computes."""
        each = math.ceil(shape.width / self.across)
        return each if each <= 2 else round_up(each, VECTOR)

    def elements(self, shape: Shape) -> tuple[int, int, int, int]:
        """Elements of shared memory: queries, half of the slices, weights, and what threads tell each other."""
        half = max(self.keys * stride(self.deep), self.some * self.columns(shape) * self.across)
        depth = round_up(shape.depth, self.deep)
        return self.rows * stride(depth), half, self.rows * stride(self.keys), self.rows * stride(self.across)

    def shared(self, shape: Shape) -> int:
        """Bytes of shared memory."""
        q, half, weights, told = self.elements(shape)
        return ITEM_BYTES[shape.kept] * (q + 2 * half + weights + told)

    def waiting(self, shape: Shape) -> int:
        """Elements of a slice that a thread holds on their way."""
        return max(self.keys * self.deep, self.some * self.columns(shape) * self.across) // self.threads

    def registers(self, shape: Shape) -> int:
        """Of a thread, about: scores and operands, results, a slice on its way, addresses."""
        columns = self.columns(shape)
        words = self.a * (self.b + columns + VECTOR + 2) + max(VECTOR * self.b, columns) + self.waiting(shape)
        return words * ITEM_BYTES[shape.kept] // 4 + 48

    def resident(self, shape: Shape, device: Device) -> int:
        """Blocks that share a multiprocessor, by registers and by shared memory."""
        of_registers = device.registers // (self.threads * round_up(self.registers(shape), 8))
        of_shared = device.shared_per_multiprocessor // (self.shared(shape) + 1024)
        return max(1, min(of_registers, of_shared, device.blocks_per_multiprocessor))


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


def tiles(shape: Shape, device: Device) -> list[Tile]:
    """The tiles that fit the device, the best by estimate first; none where even the smallest does not."""
    # Not more than lets two blocks share a multiprocessor.
    limit = min(device.shared_per_block, device.shared_per_multiprocessor // 2 - 1024)
    found = []
    for tile in TILES:
        if tile.threads > device.threads_per_block or tile.a * tile.columns(shape) * ITEM_BYTES[shape.kept] > 384:
            continue
        made = sliced(tile, shape, limit)
        if made is not None:
            most = math.ceil(shape.keys / tile.keys)
            found += [replace(made, split=split) for split in SPLITS if split == 1 or 2 * split <= most]
    return sorted(found, key=lambda tile: seconds(shape, tile, device))


def sliced(tile: Tile, shape: Shape, limit: int) -> Tile | None:
    """The tile with the fewest slices that fit `limit` bytes and leave registers for the sums."""
    sizes = (128, 64, 32, 16, 8, 4)
    depth = round_up(shape.depth, VECTOR)
    # `deep` that does not divide the depth would pad it: the last slices of little use
    deeps = dict.fromkeys([*([depth] if depth <= 64 else []), *(s for s in sizes if s < round_up(depth, 16))])
    fitting = [
        made
        for deep in deeps
        for some in sizes
        if some <= tile.keys
        for made in [replace(tile, deep=deep, some=some)]
        if made.shared(shape) <= limit and (made.waiting(shape) <= WAITING or (deep == some == VECTOR))
    ]

    def slices(made: Tile) -> tuple[int, int]:
        return math.ceil(shape.depth / made.deep) + tile.keys // made.some, made.shared(shape)

    return min(fitting, key=slices, default=None)


def seconds(shape: Shape, tile: Tile, device: Device) -> float:
    """An estimate: rounds of blocks, each bound by arithmetic, by shared memory, or by waiting for its slices."""
    blocks = shape.heads * math.ceil(shape.queries / tile.rows) * tile.split
    together = min(math.ceil(blocks / device.multiprocessors), tile.resident(shape, device))
    rounds = math.ceil(blocks / (device.multiprocessors * together))
    columns = tile.columns(shape)
    depth, keys = round_up(shape.depth, tile.deep), math.ceil(shape.keys / tile.keys / tile.split)
    # 128 multiply-adds a cycle, 32 words from shared memory, 32 bytes from the second-level cache, 400 cycles away.
    threads = together * tile.threads
    products = tile.a * (tile.b * depth + columns * tile.keys + 24 * tile.b) * (max(threads, 128) + 64)
    # A vector of q or of weights goes to all threads of a row at once; one of k or v to all rows of a warp.
    rows, shared = 32 / tile.across, min(1.0, tile.across / 32)
    once = tile.a * max(rows, 1.0) / 8
    loads = threads * (depth * (once + tile.b * shared) + tile.keys * (once + columns * shared))
    fetched = together * tile.keys * (shape.depth + shape.width) * ITEM_BYTES[shape.kept]
    slices = depth // tile.deep + tile.keys // tile.some
    terms = (products / 128, loads / 32, fetched / 32, 300.0 + 400 * slices)
    cycles = rounds * (keys * shape.visible(tile.rows, tile.keys) + 1) * (max(terms) + sum(terms) / 8)
    results = shape.heads * shape.queries * shape.width
    again = 0.0 if tile.split == 1 else 4e-6 + (tile.split + 1) * results * 4 / device.bandwidth
    return cycles / CLOCK + again
