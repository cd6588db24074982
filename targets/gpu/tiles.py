"""The tiles that kernel templates offer for the GEMM of a workload, as the templates themselves rank them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from graphopt.cost.workload import Workload
from graphopt.targets.common.identity import Identity
from graphopt.targets.common.measured_node import node_of
from graphopt.targets.gpu import rules
from graphopt.targets.gpu.devices import GpuSpec

DEFAULT = ("",)
"""The schedule's own choice."""

PRODUCTS = frozenset(
    {("", "Conv"), ("", "Gemm"), ("", "MatMul")}
    | {("graphopt", name) for name in ("BlockSparseMatMul", "Conv2dBlocked", "Conv2dWinograd")}
)
"""Domain and operator of workloads that have a GEMM in them."""

FEW = 3
"""Tiles of every kernel template that are worth measuring, ..."""

WORTH = 2.0
"""... as far as their estimates are within so many times the best one's."""

Kernels = Callable[[ir.Node], Mapping[str, Identity]]
"""The kernels that a target makes of a node, unscheduled."""


def tiles(workload: Workload, device: GpuSpec, kernels: Kernels) -> tuple[str, ...]:
    """Spellings of tiles, the best by estimate first: the empty one, which the schedule takes by itself."""
    return _spelled(workload, device, kernels, FEW, WORTH) or DEFAULT


def wide(workload: Workload, device: GpuSpec, kernels: Kernels) -> tuple[str, ...]:
    """Spellings of all tiles; none where there is nothing to choose."""
    return _spelled(workload, device, kernels, None, float("inf"))


def _spelled(workload: Workload, device: GpuSpec, kernels: Kernels, count: int | None, worth: float) -> tuple[str, ...]:
    if (workload.domain, workload.op_type) not in PRODUCTS:
        return ()
    try:
        identities = kernels(node_of(workload))
    except Exception:  # noqa: BLE001  TVM raises anything; measuring will say that there is no such kernel
        return ()
    for identity in identities.values():
        choices = rules.choices(identity.function(), device, count)
        if choices:
            return "", *(choice.tile for choice in choices[1:] if choice.seconds <= worth * choices[0].seconds)
    return ()
