"""Differences between outputs and a reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from graphopt.report.document import Table
from graphopt.verify.judge import Judge
from graphopt.verify.oracle import EXACT, TOLERANCES


@dataclass(frozen=True, slots=True)
class Difference:
    """One output: its largest absolute difference, the largest that is allowed, and the problem, if any.

    `shape` is None for sequences; `largest` and `allowed` are for outputs that are not numeric.
    """

    output: str
    dtype: str
    shape: tuple[int, ...] | None
    largest: float | None
    allowed: float | None
    problem: str


def differences(judge: Judge, actual: Mapping[str, Any]) -> list[Difference]:
    """One difference per output of the reference, as `judge` evaluates it."""
    compared = []
    problems = {mismatch.output: mismatch.message for mismatch in judge.mismatches(actual)}
    for name, value in judge.expected.items():
        largest, allowed = _distance(value, actual.get(name))
        allowed = None if allowed is None else max(allowed, judge.allowed.get(name, 0.0))
        shape = value.shape if isinstance(value, np.ndarray) else None
        dtype = value.dtype.name if isinstance(value, np.ndarray) else type(value).__name__
        compared.append(Difference(name, dtype, shape, largest, allowed, _problem(name, problems)))
    return compared


def _problem(name: str, problems: Mapping[str, str]) -> str:
    """The problem of an output, or of an element of a sequence output."""
    return next((text for other, text in problems.items() if other == name or other.startswith(f"{name}[")), "")


def table(compared: list[Difference]) -> Table:
    """One row per output."""
    rows = tuple(
        (
            difference.output,
            difference.dtype,
            "?" if difference.shape is None else "x".join(map(str, difference.shape)),
            _number(difference.largest),
            _number(difference.allowed),
            difference.problem or "equal",
        )
        for difference in compared
    )
    columns = ("output", "dtype", "shape", "largest difference", "allowed", "verdict")
    return Table(columns, rows, right=("largest difference", "allowed"))


def document(compared: list[Difference]) -> list[dict[str, Any]]:
    """One JSON object per output."""
    return [asdict(difference) for difference in compared]


def _distance(expected: Any, actual: Any) -> tuple[float | None, float | None]:
    both = isinstance(expected, np.ndarray) and isinstance(actual, np.ndarray)
    if not both or expected.shape != actual.shape or expected.dtype != actual.dtype or not expected.size:
        return None, None
    if expected.dtype.hasobject or expected.dtype.kind in "cSU":
        return None, None
    x, y = expected.astype(np.float64), actual.astype(np.float64)
    finite = np.isfinite(x) & np.isfinite(y)
    tolerance = TOLERANCES.get(expected.dtype.name, EXACT)
    largest = float(np.abs(x[finite] - y[finite]).max(initial=0.0))
    return largest, tolerance.atol + tolerance.rtol * float(np.abs(x[finite]).max(initial=0.0))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
