"""How kernels on rows are launched on a GPU: threads per row, rows per block, and an estimate of their seconds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from graphopt.program.program import ITEM_BYTES
from graphopt.targets.gpu.devices import GpuSpec
from graphopt.targets.gpu.waves import CLOCK, REACHED_BANDWIDTH, fitting_by_threads, waves

BYTES = 16
"""Bytes of the widest load."""

KEPT = 32
"""Elements of its row that a thread keeps in registers."""

BLOCK = 256
"""Threads of a block that has several rows."""


@dataclass(frozen=True, slots=True)
class LaunchConfig:
    """A block takes `rows` rows; `lanes` threads share a row, each `turns` times `vector` neighbours.

    With `kept`, a thread keeps them in registers; else the row is read again for every pass. Written "8x32x4".
    """

    lanes: int
    rows: int
    vector: int
    turns: int
    kept: bool

    @property
    def threads(self) -> int:
        """Threads per block."""
        return self.lanes * self.rows

    def __str__(self) -> str:
        """The configuration as it is written."""
        return f"{self.rows}x{self.lanes}x{self.vector}" + ("" if self.kept else " streamed")


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of n elements, which are stored as `dtype` and computed as `accumulate`; `passes` reductions of each."""

    rows: int
    n: int
    dtype: str
    accumulate: str
    passes: int = 2


def launch_config(work: Rows, device: GpuSpec) -> LaunchConfig:
    """The best launch configuration by estimate."""
    return min(
        _launch_configs(work, device),
        key=lambda config: (seconds(work, config, device), abs(config.threads - BLOCK)),
    )


def _launch_configs(work: Rows, device: GpuSpec) -> Iterator[LaunchConfig]:
    widest = BYTES // max(ITEM_BYTES[work.dtype], ITEM_BYTES[work.accumulate])
    vector = math.gcd(work.n, widest)
    vectors = work.n // vector
    most = min(1024, device.threads_per_block)
    lanes = [1 << power for power in range(11) if 1 << power <= most and (power == 0 or 1 << (power - 1) < vectors)]
    kept = [count for count in lanes if math.ceil(vectors / count) * vector * ITEM_BYTES[work.accumulate] // 4 <= KEPT]
    for each in kept or lanes[-1:]:
        rows = max(1, device.warp // each)  # whole warps
        while True:
            yield LaunchConfig(each, rows, vector, math.ceil(vectors / each), bool(kept))
            rows *= 2
            # Rows that share warps share a block; and not so many that multiprocessors are left without one.
            if rows * each > min(BLOCK, most) or each > device.warp or work.rows < 2 * device.multiprocessors * rows:
                break


def seconds(work: Rows, config: LaunchConfig, device: GpuSpec) -> float:
    """An estimate: waves of blocks, each bound by its instructions or by waiting; or memory at what can be reached."""
    blocks = math.ceil(work.rows / config.rows)
    warps = math.ceil(config.threads / device.warp)
    grid = waves(blocks, fitting_by_threads(config.threads, device), device)
    elements = config.turns * config.vector
    again = 1 if config.kept else 1 + work.passes
    # Some ten instructions an element and pass, four warps at once; loads that do not neighbour those of the next
    # thread take as many turns; 25 cycles a shuffle, 100 for other warps.
    steps = math.log2(config.lanes) * 25 + (100 if config.lanes > device.warp else 0)
    spread = min(8, max(1, elements * ITEM_BYTES[work.dtype] // 32)) if config.lanes < 8 else 1
    working = grid.resident_blocks * warps * elements * (10 * (work.passes + 1) + 4 * spread * again) / 4
    waiting = again * 600 + elements * 4 * (work.passes + 1) + work.passes * steps
    size = (again + 1) * work.rows * work.n * ITEM_BYTES[work.dtype]
    return max(grid.count * max(working, waiting) / CLOCK, size / (REACHED_BANDWIDTH * device.bandwidth))
