"""Predictions for every kernel of a program for a GPU: its algorithm, precision, time, and what bounds it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from graphopt.graph.analysis import elements
from graphopt.program.program import ITEM_BYTES, KernelCall, NativeSegment, Value
from graphopt.report.document import Table
from graphopt.report.memory_plan import short
from graphopt.report.units import seconds

if TYPE_CHECKING:
    import onnx_ir as ir

    from graphopt.artifact import Artifact


def rows(artifact: Artifact, model: ir.Model) -> list[dict[str, Any]]:
    """One row per kernel call, in order; empty for a program that runs on a CPU.

    `seconds` is an estimate for the device that the artifact was compiled for; `bound` is the slower of arithmetic at
    its peak and memory at its bandwidth (the roofline of Williams, Waterman and Patterson, 2009), which takes
    `roofline` seconds for the kernel's `flops` and `bytes`.
    """
    plans = artifact.manifest.get("kernels") or {}
    if not plans:
        return []
    from graphopt.graph.analysis import node_flops
    from graphopt.targets.gpu import devices, waves

    device = devices.DEVICES.get(artifact.manifest["target"].get("device"), devices.OPENCL)
    nodes = {str(node.name): node for node in model.graph.all_nodes()}
    owners = _owners(artifact, plans)
    table_rows = []
    for stage in artifact.program.stages:
        values = {value.name: value for value in stage.values}
        segments = (segment for segment in stage.segments if isinstance(segment, NativeSegment))
        for call in (call for segment in segments for call in segment.calls):
            own = [nodes[name] for name in call.origin if name in nodes and owners[name] is call]
            plan = plans.get(call.symbol, {})
            stored = values[call.outputs[0]].dtype
            work, size = sum(map(node_flops, own)), _bytes(call, values, own)
            arithmetic = work / device.rates.get(_units(plan.get("precision", ""), stored), device.rates["float32"])
            memory = size / device.bandwidth
            estimate = plan.get("seconds") or max(memory / waves.REACHED_BANDWIDTH, arithmetic)
            table_rows.append({
                "kernel": call.symbol,
                "nodes": list(call.origin),
                "algorithm": str(plan.get("algorithm", "")),
                "tile": str(plan.get("tile", "")),
                "layout": str(plan.get("layout", "plain")),
                "precision": str(plan.get("precision") or stored),
                "launches": len(call.launches),
                "seconds": estimate + waves.LAUNCH * (1 if plan.get("seconds") else len(call.launches)),
                "bound": "arithmetic" if arithmetic > memory else "memory",
                "flops": work,
                "bytes": size,
                "roofline": max(arithmetic, memory),
            })  # fmt: skip
    return table_rows


def _owners(artifact: Artifact, plans: Mapping[str, Any]) -> dict[str, KernelCall]:
    """The call that does a node's main work: the first that multiplies among its calls, else the first."""
    owners: dict[str, KernelCall] = {}
    segments = (segment for stage in artifact.program.stages for segment in stage.segments)
    for call in (call for segment in segments if isinstance(segment, NativeSegment) for call in segment.calls):
        for name in call.origin:
            multiplies = plans.get(call.symbol, {}).get("algorithm") == "product"
            if name not in owners or (multiplies and plans.get(owners[name].symbol, {}).get("algorithm") != "product"):
                owners[name] = call
    return owners


_UNITS = {"tf32": "tf32", "fp16": "float16", "bf16": "bfloat16", "fp64": "float64"}
"""Names in `Device.rates` of the units of a plan's precision, "fp16 mma"."""

_PARTLY = ("Gather", "GatherElements", "GatherND", "Slice", "Split")
"""Operators that read only as many elements of their first input as they output."""


def _units(precision: str, stored: str) -> str:
    """The units that compute sums; fp16 and bf16 on CUDA cores are computed as float32."""
    return _UNITS.get(precision.partition(" ")[0], "float64" if stored == "float64" else "float32")


def _bytes(call: KernelCall, values: Mapping[str, Value], nodes: Sequence[ir.Node]) -> int:
    """Bytes read and written; of the tables that the kernel indexes, only the elements that it reads."""
    taken: dict[int, int] = {}  # by the number of elements in the table
    for node in nodes:
        table, part = node.inputs[0] if node.inputs else None, sum(map(elements, node.outputs))
        if node.op_type in _PARTLY and table is not None and part < (count := elements(table)):
            taken[count] = taken.get(count, 0) + part
    total = sum(values[name].nbytes for name in call.outputs)
    for name in dict.fromkeys(call.inputs):
        value = values[name]
        count = math.prod(value.shape or ())
        total += min(value.nbytes, taken.pop(count, count) * ITEM_BYTES[value.dtype])
    return total


def table(artifact: Artifact, model: ir.Model) -> Table | None:
    """The rows as a table; None for a program that runs on a CPU."""
    kernels = rows(artifact, model)
    if not kernels:
        return None
    columns = ("kernel", "nodes", "algorithm", "tile", "layout", "precision", "launches", "predicted", "bound")
    cells = tuple(
        (
            row["kernel"],
            short(row["nodes"]),
            row["algorithm"],
            row["tile"] or "-",
            row["layout"],
            row["precision"],
            str(row["launches"]),
            seconds(row["seconds"]),
            row["bound"],
        )
        for row in kernels
    )
    total = seconds(sum(row["seconds"] for row in kernels))
    return Table(columns, cells, f"Kernels, {total} predicted", ("launches", "predicted"))
