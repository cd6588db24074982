"""The memory plan of a stage as a picture: the lifetime of each value, and its place in the arena."""

from __future__ import annotations

import colorsys
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from graphopt.program.guards import touched
from graphopt.program.program import FallbackSegment, NativeSegment, Place, Stage
from graphopt.report.units import nbytes

LINES = 40
"""Most lines of a picture in text; a stage of more steps shows several steps per line."""

_INTERNAL = re.compile(r"s\d+_\d+_\w+$")
"""Names that lowering gives: stage, segment, and a number of its own."""

_WIDTH, _HEIGHT, _MARGIN, _LEGEND = 1100, 420, 60, 46


@dataclass(frozen=True, slots=True)
class Rectangle:
    """One value of the arena: live in steps `first` to `last`, both included, at bytes `offset` to `offset + size`.

    `name` is that of the model's value, or of the nodes that compute it where the model has none.
    """

    name: str
    first: int
    last: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The arena of a stage over its steps: step 0 takes the inputs, the last gives the outputs."""

    stage: int
    steps: tuple[str, ...]
    rectangles: tuple[Rectangle, ...]
    arena: int
    lower_bound: int


def plan(stage: Stage) -> MemoryPlan:
    """The data of the picture, from the calls of the stage."""
    values = {value.name: value for value in stage.values}
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    names = []
    for step, (title, used) in enumerate(_steps(stage)):
        names.append(title)
        for name in used:
            value = values[name]
            while value.place is Place.VIEW:
                value = values[value.of]
            if value.place is Place.ARENA:
                first.setdefault(value.name, step)
                last[value.name] = step
    shown = names_of_values(stage)
    rectangles = tuple(
        Rectangle(shown[name], first[name], last[name], values[name].offset, values[name].nbytes) for name in first
    )
    return MemoryPlan(stage.index, tuple(names), rectangles, stage.arena_bytes, stage.arena_lower_bound)


def names_of_values(stage: Stage, joined: Callable[[Sequence[str]], str] | None = None) -> dict[str, str]:
    """For every value of the stage a name that a reader knows: no two share one.

    Values that the model names keep their names. Others are made while lowering (`s0_1_t7`): they get the names of the
    nodes whose kernel writes them first, itself or into a part of them, as `joined` (None: `short`) puts them.
    """
    joined = joined or short
    values = {value.name: value for value in stage.values}
    writers: dict[str, str] = {}
    for segment in stage.segments:
        for call in segment.calls if isinstance(segment, NativeSegment) else ():
            nodes = joined(call.origin)
            for name in call.outputs:
                value = values[name]
                writers.setdefault(name, nodes)
                while value.place is Place.VIEW:
                    value = values[value.of]
                    writers.setdefault(value.name, nodes)
            for name in call.scratch:
                writers.setdefault(name, f"{nodes}, scratch")
    shown: dict[str, str] = {}
    taken: dict[str, int] = {}
    for name in values:
        label = writers.get(name, name) if _INTERNAL.match(name) else name
        taken[label] = taken.get(label, 0) + 1
        shown[name] = label if taken[label] == 1 else f"{label} ({taken[label]})"
    return shown


def last(nodes: Sequence[str]) -> str:
    """The last of several names, which computes the result of a kernel, and how many come before it."""
    return nodes[-1] + (f" and {len(nodes) - 1} before" if len(nodes) > 1 else "") if nodes else ""


def short(nodes: Sequence[str]) -> str:
    """The first two of several names, and how many more there are."""
    return ", ".join(nodes[:2]) + (f" +{len(nodes) - 2}" if len(nodes) > 2 else "")


def _steps(stage: Stage) -> Iterator[tuple[str, Sequence[str]]]:
    yield "inputs", stage.inputs
    for segment in stage.segments:
        if isinstance(segment, NativeSegment):
            names = [short(call.origin) or call.symbol for call in segment.calls]
        else:
            names = [segment.model if isinstance(segment, FallbackSegment) else f"choice by {segment.condition}"]
        yield from zip(names, touched(segment), strict=True)
    yield "outputs", stage.outputs


def text(stage_plan: MemoryPlan, width: int = 64, full: str = "#", free: str = ".") -> str:
    """One line per step (or several steps), the arena from left to right; live values are drawn as `full`."""
    head = f"stage {stage_plan.stage}: arena {nbytes(stage_plan.arena)}, lower bound {nbytes(stage_plan.lower_bound)}"
    if not stage_plan.arena:
        return head
    head += f", {full} is in use, one column is {nbytes(-(-stage_plan.arena // width))}"
    stride = -(-len(stage_plan.steps) // LINES)
    lines = [head]
    digits = len(str(len(stage_plan.steps) - 1))
    for start in range(0, len(stage_plan.steps), stride):
        end = min(start + stride, len(stage_plan.steps)) - 1
        alive = [rectangle for rectangle in stage_plan.rectangles if rectangle.first <= end and rectangle.last >= start]
        cells = [free] * width
        for rectangle in alive:
            low = rectangle.offset * width // stage_plan.arena
            high = -(-(rectangle.offset + rectangle.size) * width // stage_plan.arena)
            cells[low:high] = [full] * (min(high, width) - low)
        live = max(
            sum(rectangle.size for rectangle in alive if rectangle.first <= step <= rectangle.last)
            for step in range(start, end + 1)
        )
        lines.append(f"{start:>{digits}} {''.join(cells)} {nbytes(live):>8}  {stage_plan.steps[start]}")
    return "\n".join(lines)


def svg(plans: Sequence[MemoryPlan]) -> str:
    """The drawing as SVG: time to the right, offset upwards, one rectangle per value, one panel per stage."""
    height = len(plans) * (_HEIGHT + _LEGEND + _MARGIN)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
    ]
    for index, stage_plan in enumerate(plans):
        parts += _panel(stage_plan, index * (_HEIGHT + _LEGEND + _MARGIN) + _LEGEND)
    return "\n".join([*parts, "</svg>", ""])


def _panel(picture: MemoryPlan, top: int) -> Iterator[str]:
    right = _WIDTH - 2 * _MARGIN
    steps, arena = max(len(picture.steps), 1), max(picture.arena, 1)

    def x(step: int) -> float:
        return _MARGIN * 1.5 + step * right / steps

    def y(offset: int) -> float:
        return top + _HEIGHT - offset * _HEIGHT / arena

    bound = f"lower bound {nbytes(picture.lower_bound)}"
    yield (
        f'<text x="{x(0):.0f}" y="{top - 16}" font-size="15">Stage {picture.stage}: arena {nbytes(picture.arena)}, '
        f"{bound}, {len(picture.rectangles)} values over {len(picture.steps)} steps</text>"
    )
    yield (f'<rect x="{x(0):.1f}" y="{top}" width="{right}" height="{_HEIGHT}" fill="#f4f4f4" stroke="#888"/>')
    for box in picture.rectangles:
        title = f"{box.name}: {nbytes(box.size)} at {box.offset}, steps {box.first} to {box.last}"
        wide, high = x(box.last + 1) - x(box.first), box.size * _HEIGHT / arena
        yield (
            f'<rect x="{x(box.first):.1f}" y="{y(box.offset + box.size):.1f}" width="{wide:.1f}" '
            f'height="{max(high, 0.5):.1f}" fill="{_colour(box.name)}" stroke="white" stroke-width="0.5">'
            f"<title>{escape(title)}</title></rect>"
        )
        label = _clipped(box.name, int((wide - 8) / 6.5))
        if label and high > 14:
            yield (
                f'<text x="{x(box.first) + 3:.1f}" y="{y(box.offset + box.size) + high / 2 + 4:.1f}" '
                f'font-size="11" pointer-events="none">{escape(label)}</text>'
            )
    if 0 < picture.lower_bound < picture.arena:
        yield (
            f'<line x1="{x(0):.1f}" x2="{x(steps):.1f}" y1="{y(picture.lower_bound):.1f}" '
            f'y2="{y(picture.lower_bound):.1f}" stroke="#c00" stroke-dasharray="6 4"/>'
        )
    for share in range(5):
        offset = picture.arena * share // 4
        yield (
            f'<text x="{x(0) - 6:.1f}" y="{y(offset) + 4:.1f}" text-anchor="end" fill="#444">{nbytes(offset)}</text>'
        )
    for step in range(0, steps, max(steps // 10, 1)):
        yield (
            f'<text x="{(x(step) + x(step + 1)) / 2:.1f}" y="{top + _HEIGHT + 16}" text-anchor="middle" '
            f'fill="#444">{step}</text>'
        )
    yield f'<text x="{x(0) + right / 2:.0f}" y="{top + _HEIGHT + 34}" text-anchor="middle" fill="#444">step</text>'


def _clipped(name: str, most: int) -> str:
    """The first of `name` that `most` characters hold; nothing where that would say nothing."""
    if len(name) <= most:
        return name
    return f"{name[: most - 1]}\N{HORIZONTAL ELLIPSIS}" if most >= 5 else ""


def _colour(name: str) -> str:
    """A light colour, always the same for a name."""
    hue = zlib.crc32(name.encode()) % 360 / 360
    red, green, blue = (round(255 * part) for part in colorsys.hls_to_rgb(hue, 0.72, 0.55))
    return f"#{red:02x}{green:02x}{blue:02x}"
