"""How a training went: a table of its epochs, facts, JSON, and the curves of loss and accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

import numpy as np

from graphopt.report.document import Block, Facts, Table
from graphopt.report.units import count, nbytes, seconds
from graphopt.training.records.history import EpochRecord, History

ROWS = 20
"""Most rows of the table; of more epochs some are left out, the best and the last never."""

_WIDTH, _HEIGHT, _LEFT, _TOP = 1000, 460, 80, 76
_PLOT_WIDTH, _PLOT_HEIGHT = 840, 320
_LOSS, _PALE, _ACCURACY = "#2b6cb0", "#a9c8e8", "#c05621"
_POINTS = 600
"""Most points of a curve; of more steps, means of equal parts are drawn."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What is said besides the history."""

    model: str
    engine: str
    parameters: int
    batch: int
    samples: int
    step_seconds: float
    total_seconds: float
    memory: Mapping[str, int]


def document(history: History, summary: Summary) -> dict[str, Any]:
    """The epochs and the summary as JSON values; null where something is not known."""
    best = history.best
    return {
        **{name: _number(value) for name, value in asdict(summary).items() if name != "memory"},
        "memory_bytes": dict(summary.memory),
        "steps": len(history.steps),
        "best_epoch": None if best is None else best.epoch,
        "epochs": [{name: _number(value) for name, value in asdict(row).items()} for row in history.epochs],
    }


def blocks(history: History, summary: Summary) -> list[Block]:
    """The table of epochs, and the facts."""
    wanted: list[tuple[str, Callable[[EpochRecord], float], Callable[[float], str]]] = [
        ("loss", lambda row: row.loss, "{:.4f}".format),
        ("accuracy", lambda row: row.accuracy, "{:.2%}".format),
        ("test loss", lambda row: row.test_loss, "{:.4f}".format),
        ("test accuracy", lambda row: row.test_accuracy, "{:.2%}".format),
    ]
    shown = [each for each in wanted if any(math.isfinite(each[1](row)) for row in history.epochs)]
    columns = ("epoch", "steps", *(name for name, _, _ in shown))
    best = history.best
    rows = tuple(
        (
            f"{row.epoch}{' (best)' if row is best and len(history.epochs) > 1 else ''}",
            str(row.step),
            *(spelled(of(row)) if math.isfinite(of(row)) else "-" for _, of, spelled in shown),
        )
        for row in _chosen(history)
    )
    memory = ", ".join(f"{kind} {nbytes(size)}" for kind, size in summary.memory.items())
    pairs = [
        ("model", f"{summary.model}, {count(summary.parameters)} parameters that are trained"),
        ("data", f"{summary.samples} samples, {summary.batch} in an update"),
        ("engine", summary.engine),
        ("time", f"{seconds(summary.total_seconds)}; a step takes {seconds(summary.step_seconds)} in the median"),
        ("memory", f"{nbytes(sum(summary.memory.values()))}: {memory}" if memory else "not known"),
    ]
    return [Table(columns, rows, "Epochs", ("steps", *columns[2:])), Facts(tuple(pairs), "Training")]


def _chosen(history: History) -> list[EpochRecord]:
    """The epochs of the table: all of a few, else every nth, the best and the last."""
    rows = history.epochs
    stride = math.ceil(len(rows) / ROWS)
    return [row for at, row in enumerate(rows, 1) if at % stride == 0 or row is history.best or at == len(rows)]


def svg(title: str, history: History) -> str:
    """Loss to the left (log scale where it falls far), accuracy to the right, over the steps."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="26" font-size="15">{escape(title)}</text>',
        f'<text x="{_LEFT}" y="46" fill="#444">{escape(_subtitle(history))}</text>',
        f'<rect x="{_LEFT}" y="{_TOP}" width="{_PLOT_WIDTH}" height="{_PLOT_HEIGHT}" fill="#f8f8f8" stroke="#888"/>',
    ]
    return "\n".join([*parts, *_curves(history), "</svg>", ""])


def _subtitle(history: History) -> str:
    if not history.steps:
        return "no step was done"
    text = f"{len(history.steps)} steps in {len(history.epochs)} epochs; loss {history.steps[-1].loss:.4g} at the end"
    last = history.epochs[-1] if history.epochs else None
    if last is not None and math.isfinite(last.test_accuracy):
        text += f"; {last.test_accuracy:.2%} of the test set right"
    return text


def _curves(history: History) -> Iterator[str]:
    steps, losses, accuracies = _thinned(history)
    tests = [(row.step, row.test_loss) for row in history.epochs if math.isfinite(row.test_loss)]
    scores = [(row.step, row.test_accuracy) for row in history.epochs if math.isfinite(row.test_accuracy)]
    last = max(len(history.steps), 1)
    axis = _Axis.of([*losses, *(loss for _, loss in tests)])

    def x(step: float) -> float:
        return _LEFT + step / last * _PLOT_WIDTH

    def right(share: float) -> float:
        return _TOP + _PLOT_HEIGHT * (1 - share)

    bottom = _TOP + _PLOT_HEIGHT
    for value in axis.marks:
        yield (
            f'<line x1="{_LEFT}" x2="{_LEFT + _PLOT_WIDTH}" y1="{axis.place(value):.1f}" y2="{axis.place(value):.1f}" '
            'stroke="#ddd"/>'
        )
        yield f'<text x="{_LEFT - 6}" y="{axis.place(value) + 4:.1f}" text-anchor="end" fill="#444">{value:.3g}</text>'
    for step in _ticks(last):
        yield f'<text x="{x(step):.1f}" y="{bottom + 16}" text-anchor="middle" fill="#444">{step}</text>'
    yield f'<text x="{_LEFT + _PLOT_WIDTH / 2:.0f}" y="{bottom + 38}" text-anchor="middle">steps</text>'
    yield f'<text x="{_LEFT - 6}" y="{_TOP - 8}" text-anchor="end" fill="{_LOSS}">loss</text>'
    yield _line([(x(step), axis.place(loss)) for step, loss in zip(steps, losses, strict=True)], _PALE, 1)
    smooth = _smoothed(losses)
    yield _line([(x(step), axis.place(loss)) for step, loss in zip(steps, smooth, strict=True)], _LOSS, 2)
    yield from _dots([(x(step), axis.place(loss)) for step, loss in tests], _LOSS, "test loss", [v for _, v in tests])
    known = [(x(step), right(share)) for step, share in zip(steps, accuracies, strict=True) if math.isfinite(share)]
    if known or scores:
        for share in (0.0, 0.25, 0.5, 0.75, 1.0):
            place = _LEFT + _PLOT_WIDTH + 6
            yield f'<text x="{place}" y="{right(share) + 4:.1f}" fill="{_ACCURACY}">{share:.0%}</text>'
        yield f'<text x="{_LEFT + _PLOT_WIDTH + 6}" y="{_TOP - 8}" fill="{_ACCURACY}">accuracy</text>'
    yield _line([(x(step), right(share)) for step, share in scores], _ACCURACY, 2)
    yield from _dots([(x(step), right(v)) for step, v in scores], _ACCURACY, "test accuracy", [v for _, v in scores])
    yield from _legend(bool(tests), bool(scores))


def _thinned(history: History) -> tuple[list[float], list[float], list[float]]:
    """Steps, losses and accuracies; means of equal parts where there are many."""
    rows = history.steps
    table = np.array([(row.step, row.loss, row.accuracy) for row in rows], np.float64).reshape(-1, 3)
    parts = np.array_split(table, min(len(table), _POINTS)) if len(table) else []
    means = np.array([part.mean(axis=0) for part in parts]).reshape(-1, 3)
    steps, losses, accuracies = means.T.tolist()
    return steps, losses, accuracies


def _smoothed(losses: Sequence[float]) -> list[float]:
    """Means over the neighbours of each point, fewer at the ends."""
    reach = max(len(losses) // 40, 1)
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(losses, np.float64))])
    lows = np.maximum(np.arange(len(losses)) - reach, 0)
    highs = np.minimum(np.arange(len(losses)) + reach + 1, len(losses))
    smooth: list[float] = ((sums[highs] - sums[lows]) / np.maximum(highs - lows, 1)).tolist()
    return smooth


@dataclass(frozen=True, slots=True)
class _Axis:
    """The axis of the loss, from `low` to `high`, in the logarithm if `log`."""

    low: float
    high: float
    log: bool

    @classmethod
    def of(cls, values: Sequence[float]) -> _Axis:
        finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
        low, high = min(finite), max(finite)
        if low > 0 and high / low > 30:
            return cls(10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high)), True)
        low, high = min(low, 0.0), max(high * 1.05, 0.0)
        return cls(low, high if high > low else low + 1.0, False)

    @property
    def marks(self) -> list[float]:
        """Where lines are drawn: powers of ten, or five equal parts."""
        if self.log:
            return [10.0**power for power in range(round(math.log10(self.low)), round(math.log10(self.high)) + 1)]
        return [self.low + part * (self.high - self.low) / 5 for part in range(6)]

    def place(self, value: float) -> float:
        """The height of a value in the picture."""
        if self.log:
            share = math.log10(max(value, self.low) / self.low) / math.log10(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return _TOP + _PLOT_HEIGHT * (1 - share)


def _line(points: Sequence[tuple[float, float]], colour: str, width: int) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>'


def _dots(points: Sequence[tuple[float, float]], colour: str, name: str, values: Sequence[float]) -> Iterator[str]:
    for (x, y), value in zip(points, values, strict=True):
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"><title>{name}: {value:.4g}</title></circle>'


def _legend(tested: bool, scored: bool) -> Iterator[str]:
    entries = [("training loss, and its running mean", _LOSS)]
    entries += [("dots: test loss after each epoch", _LOSS)] if tested else []
    entries += [("test accuracy", _ACCURACY)] if scored else []
    left = _LEFT
    for text, colour in entries:
        yield f'<rect x="{left}" y="57" width="12" height="5" fill="{colour}"/>'
        yield f'<text x="{left + 18}" y="64" fill="#444">{text}</text>'
        left += 40 + 7 * len(text)


def _ticks(last: int) -> list[int]:
    """About eight round numbers up to `last`."""
    rough = last / 8
    power = 10 ** math.floor(math.log10(max(rough, 1)))
    stride = max(next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough), 1)
    return list(range(0, last + 1, stride))


def _number(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
