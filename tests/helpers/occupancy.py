"""How full kernels make a GPU."""

from __future__ import annotations

from graphopt.targets.gpu.devices import GpuSpec
from graphopt.targets.gpu.nvrtc import Resources


def occupancy(resources: Resources, threads: int, dynamic: int, device: GpuSpec) -> float:
    """The share of a multiprocessor's threads that are busy, from 0 to 1."""
    warps = -(-threads // device.warp)
    return resources.blocks(threads, dynamic, device) * warps * device.warp / device.threads_per_multiprocessor
