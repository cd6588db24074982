"""The table of `graphopt bench --layers`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graphopt.report.document import Block, Table

_COLUMNS = ("kernel", "nodes", "algorithm", "tile", "us", "GFLOP/s", "GB/s", "share", "bound", "error")
_WIDTH = 60


def blocks(document: Mapping[str, Any]) -> list[Block]:
    """One row per kernel in order of execution, and what it is measured against."""
    rows = document["kernels"]
    peak, environment = document["peak"], document["environment"]
    total = sum(row["seconds"] for row in rows)
    lines = [
        f"{document['model']}: {len(rows)} kernels, {total * 1e3:.2f} ms, sum of the medians; "
        f"{document['threads']} threads of {environment['cpus']}, {environment['processor']}",
        f"measured peaks: {peak['flops'] / 1e9:.0f} GFLOP/s (our kernel of {peak['model']}), "
        f"{peak['bandwidth'] / 1e9:.1f} GB/s (copies in memory, read and written)",
        "share: time at these peaks over time taken; above 100 % cached operands or a shorter algorithm",
        "GFLOP/s count the operations of the dense definition, once per node, for its slowest kernel",
        "error: mean error over mean value against float64, of the convolution or product alone, with the model's "
        "weights, on standard normal input (of a batch the first image)",
    ]
    right = ("us", "GFLOP/s", "GB/s", "share", "error")
    return [Table(_COLUMNS, tuple(map(_cells, rows)), right=right), "\n".join(lines)]


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    nodes = ", ".join(row["nodes"])
    return (
        row["kernel"],
        nodes if len(nodes) <= _WIDTH else f"{nodes[: _WIDTH - 3]}...",
        row["algorithm"] or "-",
        row["tile"] or "-",
        f"{row['seconds'] * 1e6:.1f}",
        f"{row['flops_per_second'] / 1e9:.1f}" if row["flops"] else "-",
        f"{row['bytes_per_second'] / 1e9:.1f}",
        f"{row['share_of_peak']:.0%}",
        row["bound"],
        f"{row['error']:.1e}" if row["error"] is not None else "-",
    )
