"""Who writes a product: all that can are asked what their best tile would take, and the fastest is taken.

Where tiles were measured the product says which is wanted, and whoever has that tile writes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from graphopt.targets.gpu.devices import Device
from graphopt.targets.gpu.kernels.gemm import mma, simt, wgmma
from graphopt.targets.gpu.kernels.gemm.product import Product
from graphopt.targets.gpu.kernels.gemm.tensor_cores import LABELS, TensorCores
from graphopt.targets.gpu.kernels.gemm.warpgroups import WarpGroups


@dataclass(frozen=True, slots=True)
class Choice:
    """A writer's tile: an estimate of its seconds, the units that it computes on ("fp16 mma", or ""), the code."""

    seconds: float
    tile: str
    units: str
    emit: Callable[[], Any]


def best(product: Product, device: Device) -> Choice:
    """The one that is wanted, if there is such a tile; else the fastest by estimate.

    Raises:
        ValueError: no grid of the device holds so many tiles.
    """
    if product.tile:
        wanted = next((choice for choice in choices(product, device) if choice.tile == product.tile), None)
        if wanted is not None:
            return wanted
    found = choices(product, device, 1)
    if not found:
        raise ValueError(f"{product.batch} products of {product.m} rows are more than a grid holds")
    return found[0]


def choices(product: Product, device: Device, count: int | None = None) -> list[Choice]:
    """The best `count` tiles of every writer, or all, the fastest by estimate first."""
    return sorted(_choices(product, device, count), key=lambda choice: choice.seconds)


def _choices(product: Product, device: Device, count: int | None) -> Iterator[Choice]:
    for tile in simt.tiles(product, device)[:count]:
        yield Choice(simt.seconds(product, tile, device), str(tile), "", partial(simt.emit, product, tile))
    if product.kind is None or not device.cuda:
        return
    units, label = TensorCores(product.kind), LABELS[product.kind]
    for choice in mma.tiles(product, device, units)[:count]:
        emit: Callable[[], Any] = partial(mma.emit, product, choice.tile, units)
        yield Choice(choice.seconds, str(choice.tile), f"{label} mma", emit)
    if device.warpgroups and wgmma.possible(product):
        groups = WarpGroups(product.kind)
        for wide in wgmma.tiles(product, device)[:count]:
            emit = partial(wgmma.emit, product, wide.tile, groups, device)
            yield Choice(wide.seconds, str(wide.tile), f"{label} wgmma", emit)
