"""What every kernel of a program for a GPU is expected to do: its algorithm, precision, time, and what bounds it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from graphopt.program import KernelCall, NativeSegment, Value
from graphopt.report.document import Table
from graphopt.report.units import seconds

if TYPE_CHECKING:
    import onnx_ir as ir

    from graphopt.artifact import Artifact

LAUNCH = 2e-6
"""Seconds that a kernel takes if it has nothing to do, about."""

REACHED = 0.8
"""Share of a GPU's bandwidth that kernels bound by memory reach, about."""


def rows(artifact: Artifact, model: ir.Model) -> list[dict[str, Any]]:
    """One per kernel call, in order; nothing for a program that runs on a CPU.

    `seconds` is an estimate for the device that the artifact was compiled for, `bound` the slower of arithmetic at its
    peak and memory at its bandwidth (the roofline of Williams, Waterman and Patterson, 2009).
    """
    plans = artifact.manifest.get("kernels") or {}
    if not plans:
        return []
    from graphopt.analysis import node_flops
    from graphopt.targets.gpu import devices

    device = devices.DEVICES.get(artifact.manifest["target"].get("device"), devices.OPENCL)
    flops = {str(node.name): node_flops(node) for node in model.graph.all_nodes()}
    counted: set[str] = set()
    found = []
    for stage in artifact.program.stages:
        values = {value.name: value for value in stage.values}
        segments = (segment for segment in stage.segments if isinstance(segment, NativeSegment))
        for call in (call for segment in segments for call in segment.calls):
            own = [node for node in call.origin if node not in counted]
            counted.update(own)
            work, size = sum(flops.get(node, 0) for node in own), _bytes(call, values)
            precision = values[call.outputs[0]].dtype
            units = "float64" if precision == "float64" else "float32"  # halves are computed on the same ones
            arithmetic, memory = work / device.rates[units], size / device.bandwidth
            plan = plans.get(call.symbol, {})
            estimate = plan.get("seconds") or max(memory / REACHED, arithmetic)
            found.append({
                "kernel": call.symbol,
                "nodes": list(call.origin),
                "algorithm": str(plan.get("algorithm", "")),
                "tile": str(plan.get("tile", "")),
                "layout": "plain",
                "precision": precision,
                "launches": len(call.launches),
                "seconds": estimate + LAUNCH * (1 if plan.get("seconds") else len(call.launches)),
                "bound": "arithmetic" if arithmetic > memory else "memory",
            })  # fmt: skip
    return found


def _bytes(call: KernelCall, values: Mapping[str, Value]) -> int:
    return sum(values[name].nbytes for name in (*call.inputs, *call.outputs))


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
