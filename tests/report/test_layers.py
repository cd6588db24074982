"""The table of kernels: cells, and the sentence that says what it is measured against."""

from __future__ import annotations

from typing import Any

from graphopt.report import layers
from graphopt.report.document import Table, plain

PEAK = {"flops": 1e11, "bandwidth": 1e10, "model": "zoo:layer/gemm-1024"}


def document() -> dict[str, Any]:
    conv = {
        "kernel": "conv_direct_1", "nodes": ["a.Conv2dBlocked", "b"], "algorithm": "blocked", "tile": "14x2",
        "seconds": 1e-3, "flops": 50_000_000, "bytes": 1_000_000, "flops_per_second": 5e10, "bytes_per_second": 1e9,
        "share_of_peak": 0.5, "bound": "arithmetic", "error": 3.21e-7,
    }  # fmt: skip
    pad = {
        **conv, "kernel": "pad_1", "nodes": ["<a & b>"], "algorithm": "", "tile": "", "flops": 0,
        "flops_per_second": 0.0, "bound": "memory", "error": None,
    }  # fmt: skip
    machine = {"cpus": 2, "processor": "some processor"}
    return {"model": "m.onnx", "threads": 2, "environment": machine, "peak": PEAK, "kernels": [conv, pad]}


def test_one_row_per_kernel() -> None:
    found = layers.blocks(document())
    table = found[0]
    assert isinstance(table, Table)
    assert table.rows[0] == (
        "conv_direct_1", "a.Conv2dBlocked, b", "blocked", "14x2", "1000.0", "50.0", "1.0", "50%", "arithmetic",
        "3.2e-07",
    )  # fmt: skip
    assert table.rows[1][2:4] == ("-", "-")
    assert table.rows[1][5] == table.rows[1][-1] == "-"
    assert "error" in table.right
    assert {len(row) for row in table.rows} == {len(table.columns)}
    assert "100 GFLOP/s (our kernel of zoo:layer/gemm-1024)" in plain(found)
    assert "error: mean error over mean value" in plain(found)
