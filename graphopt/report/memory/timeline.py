"""Memory over time as a picture: what is held always below, what is live in the arena above, the peak marked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from html import escape

from graphopt.report.memory.account import Account, Kind
from graphopt.report.units import nbytes

COLOURS = {
    Kind.CONSTANTS: "#8da0b6",
    Kind.PARAMETERS: "#8da0b6",
    Kind.OPTIMIZER: "#b3a2c7",
    Kind.STATISTICS: "#c3ccd6",
    Kind.STATE: "#d0d0d0",
    Kind.INPUTS: "#9fd0a0",
    Kind.OUTPUTS: "#5fa463",
    Kind.GRADIENTS: "#e3a857",
    Kind.ACTIVATIONS: "#7fb2e5",
    Kind.WORKSPACE: "#e58b7b",
}
"""Colour of each kind of bytes, in the order in which they are stacked."""

_LEFT, _PLOT_WIDTH, _SIDE = 84, 760, 320
_TOP, _PLOT_HEIGHT, _BOTTOM = 84, 340, 66
_NAMES = 10

_Scale = Callable[[float], float]
"""From a step or from bytes to a place in the picture."""


def svg(accounts: Sequence[Account], title: str) -> str:
    """One panel for each stage: bytes over its steps, stacked by kind."""
    width, panel = _LEFT + _PLOT_WIDTH + _SIDE, _TOP + _PLOT_HEIGHT + _BOTTOM
    height = panel * len(accounts)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for index, each in enumerate(accounts):
        name = f"{title}, stage {each.stage}" if len(accounts) > 1 else title
        parts += _panel(each, name, index * panel + _TOP)
    return "\n".join([*parts, "</svg>", ""])


def _panel(found: Account, title: str, top: int) -> Iterator[str]:
    held = sum(found.held.values())
    steps = len(found.titles)
    highest = max(found.total, 1)
    bottom = top + _PLOT_HEIGHT

    def x(step: float) -> float:
        return _LEFT + step * _PLOT_WIDTH / steps

    def y(size: float) -> float:
        return bottom - size * (_PLOT_HEIGHT - 14) / highest

    yield f'<text x="{_LEFT}" y="{top - 54}" font-size="15">{escape(title)}</text>'
    yield (
        f'<text x="{_LEFT}" y="{top - 34}" fill="#444">{nbytes(found.total)}: {nbytes(held)} held always, an arena of '
        f"{nbytes(found.arena)}, {found.ratio:.3f} times the most that is live at once</text>"
    )
    yield f'<rect x="{_LEFT}" y="{top}" width="{_PLOT_WIDTH}" height="{_PLOT_HEIGHT}" fill="#f8f8f8" stroke="#888"/>'
    base = [0.0] * steps
    for kind, colour in COLOURS.items():
        if kind not in found.held and kind not in found.live:
            continue
        always = float(found.held.get(kind, 0))
        series = [always + more for more in (found.live[kind].tolist() if kind in found.live else [0] * steps)]
        above = [low + more for low, more in zip(base, series, strict=True)]
        yield f'<path d="{_band(base, above, x, y)}" fill="{colour}"><title>{kind.value}</title></path>'
        base = above
    yield from _recomputed(found, x, bottom)
    yield from _peak(found, x, y, held)
    for size, text in ((held, "held"), (found.total, "total")):
        if size:
            yield (
                f'<line x1="{_LEFT}" x2="{_LEFT + _PLOT_WIDTH}" y1="{y(size):.1f}" y2="{y(size):.1f}" stroke="#444" '
                f'stroke-dasharray="6 4"><title>{text}: {nbytes(size)}</title></line>'
            )
    for share in range(5):
        size = highest * share // 4
        yield (f'<text x="{_LEFT - 6}" y="{y(size) + 4:.1f}" text-anchor="end" fill="#444">{nbytes(size)}</text>')
    for step in range(0, steps, max(steps // 10, 1)):
        yield f'<text x="{x(step + 0.5):.1f}" y="{bottom + 22}" text-anchor="middle" fill="#444">{step}</text>'
    note = f"step; orange marks below the axis: {len(found.again)} repeated calls" if found.again else "step"
    yield f'<text x="{_LEFT + _PLOT_WIDTH / 2:.0f}" y="{bottom + 42}" text-anchor="middle">{note}</text>'
    yield from _legend(found, top)


def _band(low: Sequence[float], high: Sequence[float], x: _Scale, y: _Scale) -> str:
    """A stepped outline: along the upper edge forwards, along the lower edge back."""
    corners = (*_corners(high, x, y), *reversed(_corners(low, x, y)))
    return "M" + " L".join(f"{a} {b}" for a, b in corners) + " Z"


def _corners(sizes: Sequence[float], x: _Scale, y: _Scale) -> list[tuple[str, str]]:
    """Where a stepped line turns: neighbouring steps of one height, as drawn, are one line."""
    heights = [f"{y(size):.1f}" for size in sizes]
    corners = []
    for step, height in enumerate(heights):
        if not step or heights[step - 1] != height:
            corners.append((f"{x(step):.1f}", height))
        if step + 1 == len(heights) or heights[step + 1] != height:
            corners.append((f"{x(step + 1):.1f}", height))
    return corners


def _recomputed(found: Account, x: _Scale, bottom: int) -> Iterator[str]:
    for step in found.again:
        yield (
            f'<rect x="{x(step):.1f}" y="{bottom + 2}" width="{max(x(step + 1) - x(step), 0.8):.1f}" height="6" '
            f'fill="#e08020"><title>again: {escape(found.titles[step])}</title></rect>'
        )


def _peak(found: Account, x: _Scale, y: _Scale, held: int) -> Iterator[str]:
    size = held + sum(int(series[found.peak]) for series in found.live.values())
    place = x(found.peak + 0.5)
    right = place > _LEFT + 0.7 * _PLOT_WIDTH
    yield f'<line x1="{place:.1f}" x2="{place:.1f}" y1="{y(0):.1f}" y2="{y(size) - 10:.1f}" stroke="#c00"/>'
    yield (
        f'<text x="{place + (-6 if right else 6):.1f}" y="{y(size) - 5:.1f}" fill="#c00" '
        f'text-anchor="{"end" if right else "start"}">peak: {escape(_clipped(found.titles[found.peak], 60))}</text>'
    )


def _legend(found: Account, top: int) -> Iterator[str]:
    """The kinds with their bytes at the peak, and the largest values there."""
    left, line = _LEFT + _PLOT_WIDTH + 18, top + 10
    for kind, colour in reversed(COLOURS.items()):
        size = found.held.get(kind) or (int(found.live[kind][found.peak]) if kind in found.live else 0)
        if size:
            when = "" if kind in found.held else " at the peak"
            yield f'<rect x="{left}" y="{line - 10}" width="12" height="12" fill="{colour}"/>'
            yield f'<text x="{left + 18}" y="{line}">{kind.value}: {nbytes(size)}{when}</text>'
            line += 18
    line += 14
    yield f'<text x="{left}" y="{line}" fill="#c00">Live at the peak</text>'
    for each in found.at_peak[:_NAMES]:
        line += 17
        yield (
            f'<text x="{left}" y="{line}" font-size="11"><title>{escape(each.name)}</title>'
            f"{nbytes(each.size)}  {escape(_clipped(each.name, 36))}</text>"
        )
    rest = len(found.at_peak) - _NAMES
    if rest > 0:
        yield f'<text x="{left}" y="{line + 17}" font-size="11" fill="#444">and {rest} more</text>'


def _clipped(name: str, most: int) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}\N{HORIZONTAL ELLIPSIS}"
