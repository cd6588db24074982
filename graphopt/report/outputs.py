"""The outputs of a run: dtype, shape and range of each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.report.document import Table


def document(outputs: Mapping[str, Any], files: Mapping[str, Path]) -> list[dict[str, Any]]:
    """One JSON object per output; `min`, `mean` and `max` are null where they are not finite numbers."""
    items = []
    for name, value in outputs.items():
        low, mean, high = _range(value)
        item = {"name": name, "dtype": _dtype(value), "shape": _shape(value), "min": low, "mean": mean, "max": high}
        if name in files:
            item["file"] = str(files[name])
        items.append(item)
    return items


def table(outputs: Mapping[str, Any], files: Mapping[str, Path]) -> Table:
    """One row per output."""
    rows = []
    for item in document(outputs, files):
        shape = "?" if item["shape"] is None else "x".join(map(str, item["shape"])) or "scalar"
        numbers = ("-" if item[key] is None else f"{item[key]:.6g}" for key in ("min", "mean", "max"))
        rows.append((item["name"], item["dtype"], shape, *numbers, *([item["file"]] if files else [])))
    columns = ("output", "dtype", "shape", "min", "mean", "max", *(["file"] if files else []))
    return Table(columns, tuple(rows), right=("min", "mean", "max"))


def _dtype(value: Any) -> str:
    return str(value.dtype) if isinstance(value, np.ndarray) else type(value).__name__


def _shape(value: Any) -> list[int] | None:
    return list(value.shape) if isinstance(value, np.ndarray) else None


def _range(value: Any) -> tuple[float | None, float | None, float | None]:
    if not isinstance(value, np.ndarray) or not value.size or value.dtype.hasobject or value.dtype.kind in "cSU":
        return None, None, None
    wide = value.astype(np.float64)
    with np.errstate(all="ignore"):  # NaN and infinities are results, and shown as null
        return _finite(wide.min()), _finite(wide.mean()), _finite(wide.max())


def _finite(number: float) -> float | None:
    return float(number) if math.isfinite(number) else None
