"""The layers of `graphopt bench --suite sparse` as a grid: how many times as fast, by block and sparsity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from graphopt.report.document import Table

LEAST = 6
"""Layers from which on a grid says more than rows."""


def grid(document: Mapping[str, Any]) -> Table | None:
    """Layers and blocks down, shares of blocks that are zero across; None unless all models are such layers.

    A cell holds the times that each peer takes of what graphopt takes, in the order of the peers; "-" where there is
    none, "wrong" where the result was.
    """
    rows = document["models"]
    if len(rows) < LEAST or not all("layer" in row for row in rows):
        return None
    peers = list(document["geometric_mean"])
    percents = sorted({row["layer"]["percent"] for row in rows})
    cells: dict[tuple[str, str], dict[int, str]] = {}
    for row in rows:
        layer = row["layer"]
        cells.setdefault((layer["shape"], layer["block"]), {})[layer["percent"]] = _cell(row, peers)
    lines = tuple((*key, *(line.get(percent, "-") for percent in percents)) for key, line in cells.items())
    titles = tuple(f"{percent} %" for percent in percents)
    takes = "takes" if len(peers) == 1 else "take"
    title = f"Times that {' / '.join(peers)} {takes}, by the share of blocks, or inputs, that are zero"
    return Table(("layer", "block", *titles), lines, title, titles)


def _cell(row: Mapping[str, Any], peers: Sequence[str]) -> str:
    if row["error"] is not None:
        return "failed"
    if not row["equal"]:
        return "wrong"
    ratios = [row["ratios"].get(peer) for peer in peers]
    return " / ".join("-" if ratio is None else _digits(1 / ratio["value"]) for ratio in ratios)


def _digits(times: float) -> str:
    return f"{times:.0f}" if times >= 10 else f"{times:.1f}" if times >= 1.995 else f"{times:.2f}"
