"""What every kernel of a program for a GPU is expected to do: its algorithm, precision, time, and what bounds it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from graphopt.graph.analysis import elements
from graphopt.program.program import ITEM_BYTES, KernelCall, NativeSegment, Value
from graphopt.report.document import Table
from graphopt.report.units import seconds

if TYPE_CHECKING:
    import onnx_ir as ir

    from graphopt.artifact import Artifact


def rows(artifact: Artifact, model: ir.Model) -> list[dict[str, Any]]:
    """One per kernel call, in order; nothing for a program that runs on a CPU.

    `seconds` is an estimate for the device that the artifact was compiled for, `bound` the slower of arithmetic at its
    peak and memory at its bandwidth (the roofline of Williams, Waterman and Patterson, 2009), which takes `roofline`
    seconds for the kernel's `flops` and `bytes`.
    """
    plans = artifact.manifest.get("kernels") or {}
    if not plans:
        return []
    from graphopt.graph.analysis import node_flops
    from graphopt.targets.gpu import devices, waves

    device = devices.DEVICES.get(artifact.manifest["target"].get("device"), devices.OPENCL)
    nodes = {str(node.name): node for node in model.graph.all_nodes()}
    owners = _owners(artifact, plans)
    found = []
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
            found.append({
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
    return found


def _owners(artifact: Artifact, plans: Mapping[str, Any]) -> dict[str, KernelCall]:
    """The call that does a node's work: of those that a node became, the first that multiplies, or else the first."""
    found: dict[str, KernelCall] = {}
    segments = (segment for stage in artifact.program.stages for segment in stage.segments)
    for call in (call for each in segments if isinstance(each, NativeSegment) for call in each.calls):
        for name in call.origin:
            multiplies = plans.get(call.symbol, {}).get("algorithm") == "product"
            if name not in found or (multiplies and plans.get(found[name].symbol, {}).get("algorithm") != "product"):
                found[name] = call
    return found


_UNITS = {"tf32": "tf32", "fp16": "float16", "bf16": "bfloat16", "fp64": "float64"}
"""Names in `Device.rates` of the units of a plan's precision, "fp16 mma"."""

_PARTLY = ("Gather", "GatherElements", "GatherND", "Slice", "Split")
"""Operators that read what they give of their first input, and no more."""


def _units(precision: str, stored: str) -> str:
    """What sums are computed on; halves on the ordinary units are computed as float32 is."""
    return _UNITS.get(precision.partition(" ")[0], "float64" if stored == "float64" else "float32")


def _bytes(call: KernelCall, values: Mapping[str, Value], nodes: Sequence[ir.Node]) -> int:
    """Read and written: of the tables that the kernel looks things up in, what it takes from them."""
    taken: dict[int, int] = {}  # by the number of elements in the table
    for node in nodes:
        table, part = node.inputs[0] if node.inputs else None, sum(map(elements, node.outputs))
        if node.op_type in _PARTLY and table is not None and part < (whole := elements(table)):
            taken[whole] = taken.get(whole, 0) + part
    total = sum(values[name].nbytes for name in call.outputs)
    for name in dict.fromkeys(call.inputs):
        value = values[name]
        whole = math.prod(value.shape or ())
        total += min(value.nbytes, taken.pop(whole, whole) * ITEM_BYTES[value.dtype])
    return total


def table(artifact: Artifact, model: ir.Model) -> Table | None:
    """The rows, for people; None for a program that runs on a CPU."""
    found = rows(artifact, model)
    if not found:
        return None
    columns = ("kernel", "nodes", "algorithm", "tile", "layout", "precision", "launches", "predicted", "bound")
    cells = tuple(
        (
            row["kernel"],
            ", ".join(row["nodes"][:2]) + (f" +{len(row['nodes']) - 2}" if len(row["nodes"]) > 2 else ""),
            row["algorithm"],
            row["tile"] or "-",
            row["layout"],
            row["precision"],
            str(row["launches"]),
            seconds(row["seconds"]),
            row["bound"],
        )
        for row in found
    )
    total = seconds(sum(row["seconds"] for row in found))
    return Table(columns, cells, f"Kernels, {total} predicted", ("launches", "predicted"))
