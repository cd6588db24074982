"""The roofline of a model as a picture: operations per byte to the right, operations per second upwards, log scale.

A kernel lies below min(arithmetic peak, bandwidth x intensity) unless its operands were in a cache (Williams, Waterman
and Patterson 2009, doi:10.1145/1498765.1498785). A larger dot took a larger share of the time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

_WIDTH, _HEIGHT, _LEFT, _TOP = 1000, 620, 90, 60
_PLOT_WIDTH, _PLOT_HEIGHT = 860, 480
_COLOURS = {"arithmetic": "#2b6cb0", "memory": "#c05621"}
_LABELS = 8


def svg(document: Mapping[str, Any]) -> str:
    """The drawing as SVG; kernels without operations (copies, pads) are only counted below."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
    ]
    return "\n".join([*parts, *_parts(document), "</svg>", ""])


def _parts(document: Mapping[str, Any]) -> Iterator[str]:
    peak, slope = document["peak"]["flops"], document["peak"]["bandwidth"]
    shown = [row for row in document["kernels"] if row["flops"] and row["bytes"]]
    points = [(row["flops"] / row["bytes"], row["flops_per_second"]) for row in shown]
    ridge = peak / slope
    left = math.floor(math.log10(min([ridge / 10, *(point[0] for point in points)])))
    right = math.ceil(math.log10(max([ridge * 10, *(point[0] for point in points)])))
    low = math.floor(math.log10(min([peak / 100, *(point[1] for point in points)])))
    high = math.ceil(math.log10(max([peak * 1.5, *(point[1] for point in points)])))

    def x(intensity: float) -> float:
        return _LEFT + (math.log10(intensity) - left) / (right - left) * _PLOT_WIDTH

    def y(rate: float) -> float:
        return _TOP + _PLOT_HEIGHT - (math.log10(rate) - low) / (high - low) * _PLOT_HEIGHT

    bottom = _TOP + _PLOT_HEIGHT
    yield (
        f'<text x="{_LEFT}" y="28" font-size="15">{escape(str(document["model"]))}, {escape(_where(document))}: '
        f"{peak / 1e9:.0f} GFLOP/s, {slope / 1e9:.1f} GB/s {'of its maker' if _device(document) else 'measured'}</text>"
    )
    yield (f'<rect x="{_LEFT}" y="{_TOP}" width="{_PLOT_WIDTH}" height="{_PLOT_HEIGHT}" fill="#f8f8f8" stroke="#888"/>')
    for power in range(left, right + 1):
        place = x(10.0**power)
        yield f'<line x1="{place:.1f}" x2="{place:.1f}" y1="{_TOP}" y2="{bottom}" stroke="#ddd"/>'
        yield f'<text x="{place:.1f}" y="{bottom + 16}" text-anchor="middle" fill="#444">{10.0**power:g}</text>'
    for power in range(low, high + 1):
        place = y(10.0**power)
        yield f'<line x1="{_LEFT}" x2="{_LEFT + _PLOT_WIDTH}" y1="{place:.1f}" y2="{place:.1f}" stroke="#ddd"/>'
        label = f"{10.0 ** (power - 9):g}"
        yield f'<text x="{_LEFT - 6}" y="{place + 4:.1f}" text-anchor="end" fill="#444">{label}</text>'
    start = max(10.0**left, 10.0**low / slope)
    corners = [(start, start * slope), (ridge, peak), (10.0**right, peak)]
    roof = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in corners)
    yield f'<polyline points="{roof}" fill="none" stroke="#222" stroke-width="2"/>'
    total = sum(row["seconds"] for row in document["kernels"]) or 1.0
    largest = sorted(range(len(shown)), key=lambda index: -shown[index]["seconds"])
    for index in largest:  # small dots on top
        row, (intensity, rate) = shown[index], points[index]
        share = row["seconds"] / total
        title = (
            f"{row['kernel']}: {row['seconds'] * 1e6:.1f} us, {share:.1%} of the time, {rate / 1e9:.1f} GFLOP/s, "
            f"{intensity:.2f} operations per byte; {', '.join(row['nodes'])}"
        )
        yield (
            f'<circle cx="{x(intensity):.1f}" cy="{y(rate):.1f}" r="{3 + 30 * math.sqrt(share):.1f}" '
            f'fill="{_COLOURS[row["bound"]]}" fill-opacity="0.45" stroke="{_COLOURS[row["bound"]]}">'
            f"<title>{escape(title)}</title></circle>"
        )
    for number, index in enumerate(largest[:_LABELS], 1):
        intensity, rate = points[index]
        yield (
            f'<text x="{x(intensity):.1f}" y="{y(rate) + 4:.1f}" text-anchor="middle" font-size="11" '
            f'pointer-events="none">{number}</text>'
        )
        key = f"{number} {shown[index]['kernel']}"
        yield (
            f'<text x="{_LEFT + _PLOT_WIDTH - 8}" y="{bottom - 12 - 15 * (_LABELS - number)}" text-anchor="end" '
            f'font-size="11" fill="#444">{escape(key)}</text>'
        )
    middle = _LEFT + _PLOT_WIDTH / 2
    yield f'<text x="{middle:.0f}" y="{bottom + 36}" text-anchor="middle">operations per byte of operands</text>'
    yield f'<text x="{_LEFT - 60}" y="{_TOP - 12}">GFLOP/s</text>'
    hidden = len(document["kernels"]) - len(shown)
    yield (
        f'<text x="{middle:.0f}" y="{bottom + 56}" text-anchor="middle" fill="#444">larger: more of the time; '
        f"blue: bound by arithmetic, orange: by memory; {hidden} kernels without operations are not shown</text>"
    )


def _device(document: Mapping[str, Any]) -> str:
    """The name of the measured device, "" for a CPU."""
    return str(document.get("environment", {}).get("device", {}).get("name", ""))


def _where(document: Mapping[str, Any]) -> str:
    return _device(document) or f"{document['threads']} threads"
