"""Who writes a product: all that can are asked what their best tile would take, and the fastest is taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from graphopt.targets.gpu.devices import Device
from graphopt.targets.gpu.kernels import mma, simt, wgmma
from graphopt.targets.gpu.kernels.product import Product
from graphopt.targets.gpu.kernels.tensor_cores import LABELS, TensorCores
from graphopt.targets.gpu.kernels.warpgroups import WarpGroups


@dataclass(frozen=True, slots=True)
class Choice:
    """A writer's best tile: an estimate of its seconds, the units that it computes on ("fp16 mma", or ""), the code."""

    seconds: float
    tile: str
    units: str
    write: Callable[[], Any]


def best(product: Product, device: Device) -> Choice:
    """The fastest by estimate.

    Raises:
        ValueError: no grid of the device holds so many tiles.
    """
    found = list(_choices(product, device))
    if not found:
        raise ValueError(f"{product.batch} products of {product.m} rows are more than a grid holds")
    return min(found, key=lambda choice: choice.seconds)


def _choices(product: Product, device: Device) -> Iterator[Choice]:
    for tile in simt.tiles(product, device)[:1]:
        yield Choice(simt.seconds(product, tile, device), str(tile), "", partial(simt.write, product, tile))
    if product.kind is None or not device.cuda:
        return
    units, label = TensorCores(product.kind), LABELS[product.kind]
    for choice in mma.tiles(product, device, units)[:1]:
        write: Callable[[], Any] = partial(mma.write, product, choice.tile, units)
        yield Choice(choice.seconds, str(choice.tile), f"{label} mma", write)
    if device.warpgroups and wgmma.possible(product):
        groups = WarpGroups(product.kind)
        for wide in wgmma.tiles(product, device)[:1]:
            write = partial(wgmma.write, product, wide.tile, groups, device)
            yield Choice(wide.seconds, str(wide.tile), f"{label} wgmma", write)
