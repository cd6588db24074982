"""Memory against time: what each budget costs, as a table and a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from graphopt.report.document import Block, Table
from graphopt.report.units import nbytes

_LEFT, _TOP, _WIDTH, _HEIGHT = 84, 62, 760, 340


@dataclass(frozen=True, slots=True)
class Point:
    """One budget: bytes held by the rank that holds most, and the seconds of all calls as a multiple of each once.

    `gap` says how far the seconds may be above the fastest plan of this budget; `again` are repeated calls.
    """

    total: int
    arena: int
    slowdown: float
    gap: float
    again: int


def pareto(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats in both respects, the largest first."""
    front: list[Point] = []
    for point in sorted(points, key=lambda each: (each.slowdown, each.total)):
        if not front or point.total < front[-1].total:
            front.append(point)
    return front


def document(points: Sequence[Point]) -> list[dict[str, Any]]:
    """The points as JSON values."""
    return [
        {
            "total": each.total,
            "arena": each.arena,
            "slowdown": each.slowdown,
            "gap": each.gap,
            "repeated_calls": each.again,
        }
        for each in points
    ]


def blocks(points: Sequence[Point], seconds: str) -> list[Block]:
    """The table; `seconds` says where the seconds of the calls come from."""
    first = points[0].total if points else 0
    rows = tuple(
        (
            nbytes(each.total),
            f"{each.total / first:.0%}",
            nbytes(each.arena),
            f"{each.slowdown - 1:+.1%}",
            str(each.again),
            f"{each.gap:.1%}",
        )
        for each in points
    )
    columns = ("total", "of the first", "arena", "time", "repeated calls", "gap")
    return [
        Table(columns, rows, "Memory against time", columns),
        f"Seconds of calls are {seconds}. The gap bounds what a better plan of the same budget, with its calls first "
        "in the same order, could save.",
    ]


def svg(points: Sequence[Point], title: str) -> str:
    """Total bytes to the right, time upwards."""
    width, height = _LEFT + _WIDTH + 40, _TOP + _HEIGHT + 60
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{_LEFT}" y="26" font-size="15">{escape(title)}</text>',
        *_plot(points),
    ]
    return "\n".join([*parts, "</svg>", ""])


def _plot(points: Sequence[Point]) -> Iterator[str]:
    bottom = _TOP + _HEIGHT
    most = max((each.total for each in points), default=1) * 1.05
    slowest = max(max((each.slowdown for each in points), default=1.0) - 1, 0.01) * 1.1

    def x(total: float) -> float:
        return _LEFT + total / most * _WIDTH

    def y(slowdown: float) -> float:
        return bottom - (slowdown - 1) / slowest * _HEIGHT

    yield f'<text x="{_LEFT}" y="{_TOP - 10}" fill="#444">time more than without repeated calls</text>'
    yield f'<rect x="{_LEFT}" y="{_TOP}" width="{_WIDTH}" height="{_HEIGHT}" fill="#f8f8f8" stroke="#888"/>'
    for share in range(5):
        more, total = slowest * share / 4, most * share / 4
        yield f'<line x1="{_LEFT}" x2="{_LEFT + _WIDTH}" y1="{y(1 + more):.1f}" y2="{y(1 + more):.1f}" stroke="#ddd"/>'
        yield (f'<text x="{_LEFT - 6}" y="{y(1 + more) + 4:.1f}" text-anchor="end" fill="#444">{more:.1%}</text>')
        yield (
            f'<text x="{x(total):.1f}" y="{bottom + 18}" text-anchor="middle" fill="#444">{nbytes(round(total))}</text>'
        )
    line = " ".join(f"{x(each.total):.1f},{y(each.slowdown):.1f}" for each in points)
    yield f'<polyline points="{line}" fill="none" stroke="#3470b8" stroke-width="2"/>'
    for each in points:
        bound = each.slowdown * (1 - each.gap)
        tip = f"{nbytes(each.total)}: {each.slowdown - 1:+.1%}, {each.again} repeated calls, gap {each.gap:.1%}"
        if each.gap > 0:
            yield (
                f'<line x1="{x(each.total):.1f}" x2="{x(each.total):.1f}" y1="{y(each.slowdown):.1f}" '
                f'y2="{y(max(bound, 1.0)):.1f}" stroke="#e08020" stroke-width="2"/>'
            )
        yield (
            f'<circle cx="{x(each.total):.1f}" cy="{y(each.slowdown):.1f}" r="5" fill="#3470b8">'
            f"<title>{escape(tip)}</title></circle>"
        )
    yield (
        f'<text x="{_LEFT + _WIDTH / 2:.0f}" y="{bottom + 40}" text-anchor="middle">'
        "bytes held: weights, state and arena; orange: down to the lower bound on time</text>"
    )
