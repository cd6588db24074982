"""The table of `graphopt bench`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from graphopt.report.document import Block, Table

_MIB = 1 << 20


def blocks(document: Mapping[str, Any]) -> list[Block]:
    """One row per model, failed models included, and the geometric means."""
    rows = document["models"]
    good = [row for row in rows if row["error"] is None]
    peers = list(document["geometric_mean"])
    sides = ["graphopt", *peers]
    error = _error(document, good)
    columns = ["model"]
    columns += [f"{side} ms" for side in sides]
    columns += ["ratio"] if len(peers) == 1 else [f"ratio to {name}" for name in peers]
    columns += ["compile s", "peak MiB", *(["error"] if error else []), "fallback", "correct"]
    cells = [_cells(row, sides, peers, error) for row in good]
    means = [_mean(document["geometric_mean"][name], len(good)) for name in peers]
    if any(means):
        padding = [""] * (len(columns) - len(sides) - len(peers) - 1)
        cells.append(("geometric mean", *[""] * len(sides), *means, *padding))
    parts: list[Block] = []
    if good:
        right = tuple(column for column in columns if column not in ("model", "correct"))
        parts.append(Table(tuple(columns), tuple(cells), right=right))
    failed = [(row["model"], "graphopt", row["error"]) for row in rows if row["error"] is not None]
    failed += [(row["model"], name, why) for row in good for name, why in row.get("failures", {}).items()]
    if failed:
        parts.append(Table(("model", "side", "why it failed"), tuple(failed), "Failed"))
    wrong = [(row["model"], row["mismatch"]) for row in good if not row["equal"]]
    if wrong:
        parts.append(Table(("model", "difference from ONNX Runtime"), tuple(wrong), "Wrong"))
    unstable = tuple((row["model"], ", ".join(row["unstable"])) for row in good if row.get("unstable"))
    if unstable:
        title = "Not compared: rounding alone moves these outputs anywhere; compile --verify ends judges every step"
        parts.append(Table(("model", "outputs"), unstable, title))
    parts.append("\n".join(_footer(document, good, error)))
    return parts


def failures(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(model, sentence) of every model that failed or computed wrong outputs."""
    sentences = []
    for row in document["models"]:
        if row["error"] is not None:
            sentences.append((row["model"], str(row["error"])))
        elif not row["equal"]:
            sentences.append((row["model"], f"it computes something else than ONNX Runtime: {row['mismatch']}"))
    return sentences


def failed(document: Mapping[str, Any]) -> bool:
    """Whether a model failed or computed wrong outputs."""
    return bool(failures(document))


_ERRORS = {
    "relative_error": "error: mean absolute error over mean absolute value, against the layer in float64",
    "largest_error": "error: largest difference over largest value, against ONNX Runtime on the CPU",
}
"""Errors that a row may hold for each side, with their explanation in the footer."""


def _error(document: Mapping[str, Any], good: Sequence[Mapping[str, Any]]) -> str:
    """The error to show: of layers the one against float64, in reduced precision the one against float32, else none."""
    if any(side.get("relative_error") is not None for row in good for side in row["sides"].values()):
        return "relative_error"
    return "largest_error" if document.get("precision", "fp32") != "fp32" else ""


def _mean(mean: Mapping[str, Any] | None, models: int) -> str:
    """The geometric mean of a peer, with the number of its models if it ran fewer than graphopt."""
    if mean is None:
        return ""
    return _interval(mean) + (f" of {mean['models']}" if mean["models"] < models else "")


def _cells(row: Mapping[str, Any], sides: list[str], peers: list[str], error: str) -> tuple[str, ...]:
    measured = [row["sides"].get(side) for side in sides]
    lacking = "failed" if row["equal"] else "-"
    times = [lacking if result is None else _interval(result, 1e3) for result in measured]
    ratios = [_interval(row["ratios"][name]) if name in row["ratios"] else lacking for name in peers]
    peaks = [None if result is None else result["peak_bytes"] for result in measured]
    compiling = [None if result is None else result["compile_seconds"] for result in measured]
    errors = [None if result is None else result.get(error) for result in measured]
    return (
        row["model"].removeprefix("zoo:"),
        *times,
        *ratios,
        _per_side(compiling, lambda value: f"{value:.1f}"),
        _per_side(peaks, lambda value: f"{value / _MIB:.0f}"),
        *([_per_side(errors, lambda value: f"{value:.1e}")] if error else []),
        str(row["fallback_nodes"]),
        "NO" if not row["equal"] else "unstable" if row.get("unstable") else "yes",
    )


def _per_side(values: Sequence[float | None], text: Callable[[float], str]) -> str:
    """`5 / - / 12`, one per side."""
    return " / ".join("-" if value is None else text(value) for value in values)


def _interval(estimate: Mapping[str, float], scale: float = 1.0) -> str:
    """`4.21 [4.18, 4.25]`."""
    value, low, high = (_digits(estimate[key] * scale) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _digits(value: float) -> str:
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def _footer(document: Mapping[str, Any], good: list[Mapping[str, Any]], error: str) -> list[str]:
    environment = document["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    sides = " / ".join(["graphopt", *document["geometric_mean"]])
    device = environment.get("device")
    if device is None:
        lines = [
            f"{document['threads']} threads of {environment['cpus']}, {environment['processor']}; {versions}",
            "medians of interleaved blocks in one process, with 95 % intervals; below 1 graphopt is faster",
            f"{sides}: compile s, or opening and the first run; peak MiB, resident memory above the imports",
        ]
    else:
        driver = ", ".join(f"{what} {device[what]}" for what in ("driver", "cuda") if device[what])
        lines = [
            f"{device['name']}{f' ({driver})' if driver else ''}, {document['precision']}; {versions}",
            "medians of interleaved blocks of replayed runs, with 95 % intervals; below 1 graphopt is faster",
            f"{sides}: compile s, or opening and the first run; peak MiB, memory on the device",
        ]
    if error:
        lines.append(_ERRORS[error])
    if any(not row["quiet"] for row in good):
        lines.append("note: the threads of one side did not go to sleep before the other ran; the times are not fair")
    return lines
