"""The table of `graphopt bench --layers`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from graphopt.report.document import Block, Table

_COLUMNS = ("kernel", "nodes", "algorithm", "tile", "us", "GFLOP/s", "GB/s", "share", "bound", "error")
_ON_DEVICE = (
    "kernel",
    "nodes",
    "algorithm",
    "tile",
    "precision",
    "us",
    "predicted us",
    "GFLOP/s",
    "GB/s",
    "share",
    "bound",
)
_RIGHT = ("us", "predicted us", "GFLOP/s", "GB/s", "share", "error")
_WIDTH = 60


def blocks(document: Mapping[str, Any]) -> list[Block]:
    """One row per kernel in order of execution, and the peaks of the machine."""
    rows = document["kernels"]
    device = document["environment"].get("device")
    columns = _COLUMNS if device is None else _ON_DEVICE
    lines = _on_host(document) if device is None else _on_device(document, device)
    cells = (dict(_cells(row)) for row in rows)
    right = tuple(column for column in columns if column in _RIGHT)
    return [
        Table(columns, tuple(tuple(row[name] for name in columns) for row in cells), right=right),
        "\n".join(lines),
    ]


def _on_host(document: Mapping[str, Any]) -> list[str]:
    peak, environment = document["peak"], document["environment"]
    return [
        f"{_total(document)}; {document['threads']} threads of {environment['cpus']}, {environment['processor']}",
        f"measured peaks: {peak['flops'] / 1e9:.0f} GFLOP/s (our kernel of {peak['model']}), "
        f"{peak['bandwidth'] / 1e9:.1f} GB/s (copies in memory, read and written)",
        "share: time at these peaks over time taken; above 100 % cached operands or a shorter algorithm",
        "GFLOP/s count the operations of the dense definition, once per node, for its slowest kernel",
        "error: mean error over mean value against float64, of the convolution or product alone, with the model's "
        "weights, on standard normal input (of a batch the first image)",
    ]


def _on_device(document: Mapping[str, Any], device: Mapping[str, Any]) -> list[str]:
    peak = document["peak"]
    predicted = sum(row["predicted"] or 0.0 for row in document["kernels"])
    rates = ", ".join(f"{name} {rate / 1e12:.1f}" for name, rate in peak["rates"].items())
    return [
        f"{_total(document)}, {predicted * 1e3:.2f} ms predicted; {device['name']}, {document['precision']}",
        f"peaks of {peak['device']} as its maker has them: {rates} TFLOP/s, {peak['bandwidth'] / 1e9:.0f} GB/s",
        "share: time at these peaks over time taken; above 100 % cached operands or a shorter algorithm",
        "times are between events on the device, of kernels that are enqueued one behind the other",
    ]


def _total(document: Mapping[str, Any]) -> str:
    rows = document["kernels"]
    total = sum(row["seconds"] for row in rows)
    return f"{document['model']}: {len(rows)} kernels, {total * 1e3:.2f} ms, sum of the medians"


def _cells(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    nodes = ", ".join(row["nodes"])
    yield "kernel", row["kernel"]
    yield "nodes", nodes if len(nodes) <= _WIDTH else f"{nodes[: _WIDTH - 3]}..."
    yield "algorithm", row["algorithm"] or "-"
    yield "tile", row["tile"] or "-"
    yield "precision", row.get("precision") or "-"
    yield "us", f"{row['seconds'] * 1e6:.1f}"
    yield "predicted us", f"{row['predicted'] * 1e6:.1f}" if row.get("predicted") is not None else "-"
    yield "GFLOP/s", f"{row['flops_per_second'] / 1e9:.1f}" if row["flops"] else "-"
    yield "GB/s", f"{row['bytes_per_second'] / 1e9:.1f}"
    yield "share", f"{row['share_of_peak']:.0%}"
    yield "bound", row["bound"]
    yield "error", f"{row['error']:.1e}" if row["error"] is not None else "-"
