"""The choice of a kernel template for a GEMM: each that fits estimates its best tile, and the fastest is taken.

Where tiles were measured, the GEMM says which one is wanted, and the kernel template that owns the tile emits it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from tvm import tirx

from graphopt.targets.gpu.devices import GpuSpec
from graphopt.targets.gpu.kernels.gemm import mma, simt, wgmma
from graphopt.targets.gpu.kernels.gemm.product import Gemm
from graphopt.targets.gpu.kernels.gemm.tensor_cores import LABELS, TensorCores
from graphopt.targets.gpu.kernels.gemm.warpgroups import WarpGroups


@dataclass(frozen=True, slots=True)
class KernelCandidate:
    """A kernel template's tile: estimated seconds, the units that it computes on ("fp16 mma", or ""), its emitter."""

    seconds: float
    tile: str
    units: str
    emit: Callable[[], tirx.PrimFunc]


def best(gemm: Gemm, device: GpuSpec) -> KernelCandidate:
    """The choice with the wanted tile, if there is such a tile; else the fastest by estimate.

    Raises:
        ValueError: no grid of the device holds so many tiles.
    """
    if gemm.tile:
        wanted = next((choice for choice in choices(gemm, device) if choice.tile == gemm.tile), None)
        if wanted is not None:
            return wanted
    fastest = choices(gemm, device, 1)
    if not fastest:
        raise ValueError(f"{gemm.batch} products of {gemm.m} rows are more than a grid holds")
    return fastest[0]


def choices(gemm: Gemm, device: GpuSpec, count: int | None = None) -> list[KernelCandidate]:
    """The best `count` tiles of every kernel template, or all, the fastest by estimate first."""
    return sorted(_candidates(gemm, device, count), key=lambda choice: choice.seconds)


def _candidates(gemm: Gemm, device: GpuSpec, count: int | None) -> Iterator[KernelCandidate]:
    for tile in simt.tiles(gemm, device)[:count]:
        yield KernelCandidate(simt.seconds(gemm, tile, device), str(tile), "", partial(simt.emit, gemm, tile))
    if gemm.kind is None or not device.cuda:
        return
    units, label = TensorCores(gemm.kind), LABELS[gemm.kind]
    for choice in mma.tiles(gemm, device, units)[:count]:
        emit: Callable[[], tirx.PrimFunc] = partial(mma.emit, gemm, choice.tile, units)
        yield KernelCandidate(choice.seconds, str(choice.tile), f"{label} mma", emit)
    if device.warpgroups and wgmma.possible(gemm):
        groups = WarpGroups(gemm.kind)
        for wide in wgmma.tiles(gemm, device)[:count]:
            emit = partial(wgmma.emit, gemm, wide.tile, groups, device)
            yield KernelCandidate(wide.seconds, str(wide.tile), f"{label} wgmma", emit)
