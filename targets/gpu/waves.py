"""The wave model behind every estimate of a kernel, and the rates of a multiprocessor.

Blocks run in waves: as many at a time as fit the multiprocessors. A wave takes what its slowest resource takes, and a
share of what the others take, because they overlap imperfectly. The rates are those that NVIDIA documents for a
multiprocessor since Ampere, or that microbenchmarks find (Jia and others, arXiv:1804.06826; Luo and others,
"Benchmarking and Dissecting the Nvidia Hopper GPU Architecture", 2024); none was fitted to a device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from graphopt.targets.gpu.devices import GpuSpec

CLOCK = 1.5e9
"""Cycles per second, about."""

LAUNCH = 2e-6
"""Seconds of a kernel that has nothing to do, about."""

SECOND_KERNEL = 4e-6
"""Seconds by which a second kernel that adds up parts is later than the first, besides its traffic."""

REACHED_BANDWIDTH = 0.8
"""Share of a device's bandwidth that kernels bound by memory reach, about."""

INSTRUCTIONS = 128
"""Instructions of threads, or fused multiply-adds, that a multiprocessor issues per cycle."""

EXPONENTIALS = 16
"""Exponentials per cycle of the special function units."""

SHARED_BYTES = 128
"""Bytes of shared memory per cycle."""

L2_LOAD_BYTES = 32
"""Bytes per cycle that loads into registers get from the second-level cache."""

L2_COPY_BYTES = 40
"""Bytes per cycle that asynchronous copies get from it."""

RESERVED_SHARED_BYTES = 1024
"""Bytes of shared memory that the system takes of every block."""


@dataclass(frozen=True, slots=True)
class Waves:
    """`count` waves, in each of which `resident_blocks` share a multiprocessor."""

    count: int
    resident_blocks: int


def waves(blocks: int, fitting: int, device: GpuSpec) -> Waves:
    """The waves of a grid of `blocks`, of which `fitting` fit a multiprocessor."""
    resident_blocks = max(1, min(math.ceil(blocks / device.multiprocessors), fitting))
    return Waves(math.ceil(blocks / (device.multiprocessors * resident_blocks)), resident_blocks)


def fitting_blocks(threads: int, registers: int, shared_bytes: int, device: GpuSpec) -> int:
    """Blocks that fit a multiprocessor, at least one, by their threads' `registers`, and by shared memory."""
    by_registers = device.registers // (threads * registers)
    by_shared = device.shared_per_multiprocessor // (shared_bytes + RESERVED_SHARED_BYTES)
    return max(1, min(by_registers, by_shared, device.blocks_per_multiprocessor))


def fitting_by_threads(threads: int, device: GpuSpec) -> int:
    """Blocks that fit a multiprocessor, where their threads need few registers."""
    rounded = math.ceil(threads / device.warp) * device.warp
    return min(device.threads_per_multiprocessor // rounded, device.blocks_per_multiprocessor)


def overlapped(*cycles: float) -> float:
    """Cycles of resources that are used at the same time: the longest, and an eighth of all."""
    return max(cycles) + sum(cycles) / 8


def adding_seconds(parts: int, results: int, device: GpuSpec) -> float:
    """Seconds that a second kernel adds, which reads `parts` floats for each of `results` and writes their sum."""
    return 0.0 if parts == 1 else SECOND_KERNEL + (parts + 1) * results * 4 / device.bandwidth


def tensor_core_rate(kind: str, device: GpuSpec) -> float:
    """Operations per cycle of one multiprocessor's tensor cores."""
    return device.rates[kind] / device.multiprocessors / CLOCK
