"""Numbers in readable units."""

from __future__ import annotations

_BYTES = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
_COUNTS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"))


def nbytes(value: int) -> str:
    """`4.75 MiB`; below 1024 exactly, as `12 B`."""
    for unit, name in _BYTES:
        if value >= unit:
            return f"{_three(value / unit)} {name}"
    return f"{value} B"


def count(value: int) -> str:
    """`1.24 M`; below 1000 exactly."""
    for unit, name in _COUNTS:
        if value >= unit:
            return f"{_three(value / unit)} {name}"
    return str(value)


def seconds(value: float) -> str:
    """`1.23 ms`."""
    for unit, name in _SECONDS:
        if value >= unit:
            return f"{_three(value / unit)} {name}"
    return f"{_three(value * 1e6)} us"


def _three(value: float) -> str:
    """Three significant digits without an exponent."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
