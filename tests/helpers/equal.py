"""Two computations that have to agree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graphopt.errors import VerificationError
from graphopt.verify.oracle import TOLERANCES, Tolerance, compare


def require_equal(
    expected: Mapping[str, Any],
    actual: Mapping[str, Any],
    where: str,
    tolerances: Mapping[str, Tolerance] = TOLERANCES,
) -> None:
    """Raise a VerificationError that begins with `where` when `compare` finds anything; nothing agrees with nothing."""
    assert expected, f"{where}: nothing to compare"
    mismatches = compare(expected, actual, tolerances)
    if mismatches:
        others = f"; {len(mismatches) - 1} more outputs differ" if len(mismatches) > 1 else ""
        raise VerificationError(f"{where}: {mismatches[0].message}{others}")
