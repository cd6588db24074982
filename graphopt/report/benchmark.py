"""The table of `graphopt bench`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graphopt.report.document import Block, Table

_MIB = 1 << 20


def blocks(document: Mapping[str, Any]) -> list[Block]:
    """One row per model, failures too, and the geometric means."""
    rows = document["models"]
    good = [row for row in rows if row["error"] is None]
    peers = list(document["geometric_mean"])
    sides = ["graphopt", *peers]
    columns = ["model"]
    columns += [f"{side} ms" for side in sides]
    columns += ["ratio"] if len(peers) == 1 else [f"ratio to {name}" for name in peers]
    columns += ["compile s", "peak MiB", "fallback", "correct"]
    cells = [_cells(row, sides, peers) for row in good]
    for name in peers if good else ():
        mean = document["geometric_mean"][name]
        padding = [""] * len(sides), [""] * (len(columns) - len(sides) - len(peers) - 1)
        means = [_interval(mean) if each == name else "" for each in peers]
        cells.append(("geometric mean", *padding[0], *means, *padding[1]))
    found: list[Block] = []
    if good:
        right = tuple(column for column in columns if column not in ("model", "correct"))
        found.append(Table(tuple(columns), tuple(cells), right=right))
    failed = [(row["model"], row["error"]) for row in rows if row["error"] is not None]
    if failed:
        found.append(Table(("model", "why it failed"), tuple(failed), "Failed"))
    wrong = [(row["model"], row["mismatch"]) for row in good if not row["equal"]]
    if wrong:
        found.append(Table(("model", "difference from ONNX Runtime"), tuple(wrong), "Wrong"))
    found.append("\n".join(_footer(document, good)))
    return found


def failures(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(model, sentence) of every model that failed, or computed something else."""
    found = []
    for row in document["models"]:
        if row["error"] is not None:
            found.append((row["model"], str(row["error"])))
        elif not row["equal"]:
            found.append((row["model"], f"it computes something else than ONNX Runtime: {row['mismatch']}"))
    return found


def failed(document: Mapping[str, Any]) -> bool:
    """Whether a model failed, or computed something else."""
    return bool(failures(document))


def _cells(row: Mapping[str, Any], sides: list[str], peers: list[str]) -> tuple[str, ...]:
    times = [_interval(row["sides"][side], 1e3) for side in sides]
    ratios = [_interval(row["ratios"][name]) for name in peers]
    peaks = [row["sides"][side]["peak_bytes"] for side in sides]
    memory = ["-" if peak is None else f"{peak / _MIB:.0f}" for peak in peaks]
    correct = "yes" if row["equal"] else "NO"
    return (
        row["model"].removeprefix("zoo:"),
        *times,
        *ratios,
        f"{row['compile_seconds']:.1f}",
        " / ".join(memory),
        str(row["fallback_nodes"]),
        correct,
    )


def _interval(estimate: Mapping[str, float], scale: float = 1.0) -> str:
    """`4.21 [4.18, 4.25]`."""
    value, low, high = (_digits(estimate[key] * scale) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _digits(value: float) -> str:
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def _footer(document: Mapping[str, Any], good: list[Mapping[str, Any]]) -> list[str]:
    environment = document["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    lines = [
        f"{document['threads']} threads of {environment['cpus']}, {environment['processor']}; {versions}",
        "medians of interleaved blocks in one process, with 95 % intervals; below 1 graphopt is faster; "
        f"peak MiB: resident memory above the imports, {' / '.join(['graphopt', *document['geometric_mean']])}",
    ]
    if any(not row["quiet"] for row in good):
        lines.append("note: the threads of one side did not go to sleep before the other ran; the times are not fair")
    return lines
