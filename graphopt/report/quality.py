"""The quality of a changed model beside the dense one: a table, JSON, and a plot of both distributions of scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.report.document import Block, Table
from graphopt.verify.quality import BINS, Quality, Side

_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP = 1000, 400, 60, 84, 80
_PLOT_WIDTH, _PLOT_HEIGHT = 400, 240
_DENSE, _CHANGED = "#2b6cb0", "#c05621"
_COLUMNS = 20
"""Columns of the histograms: 5 % each."""


def document(quality: Quality, output: str = "") -> dict[str, Any]:
    """The rows as JSON values; null where labels are missing."""
    sides = {"dense": asdict(quality.dense), "changed": asdict(quality.changed)}
    return {
        "output": output,
        "samples": quality.samples,
        "classes": quality.classes,
        "scores": "probabilities" if quality.probabilities else "logits",
        "calibration_bins": BINS,
        **sides,
        "mean_top1_probability_change": quality.changed.mean_top1_probability - quality.dense.mean_top1_probability,
        "kl_mean": quality.kl_mean,
        "kl_p99": quality.kl_p99,
        "flip_rate": quality.flip_rate,
        "worst_class": quality.worst_class,
        "energy": dict(quality.energy),
    }


def blocks(quality: Quality, output: str = "", changed: str = "changed") -> list[Block]:
    """The table, and what its rows mean. `changed` is the word for the changed model: "pruned"."""
    share, plain = "{:.2%}".format, "{:.4f}".format
    worst = "" if quality.worst_class is None else f" ({quality.worst_class})"
    wanted: list[tuple[str, Callable[[Side], float | None], Callable[[float], str]]] = [
        ("top-1", lambda side: side.top1, share),
        ("top-5", lambda side: side.top5, share),
        (f"worst class{worst}", lambda side: side.worst_class, share),
        ("mean top-1 probability", lambda side: side.mean_top1_probability, plain),
        ("entropy, nats", lambda side: side.entropy, plain),
        ("negative log likelihood, nats", lambda side: side.nll, plain),
        ("expected calibration error", lambda side: side.ece, plain),
    ]
    rows = []
    for name, of, spelled in wanted:
        first, second = of(quality.dense), of(quality.changed)
        if first is None or second is None:
            continue
        difference = f"{second - first:+.2%}" if spelled is share else f"{second - first:+.4f}"
        rows.append((name, spelled(first), spelled(second), difference))
    rows += [
        (f"KL(dense || {changed}), mean, nats", "", f"{quality.kl_mean:.4f}", ""),
        (f"KL(dense || {changed}), 99th percentile", "", f"{quality.kl_p99:.4f}", ""),
        ("flip rate", "", f"{quality.flip_rate:.2%}", ""),
    ]
    what = "probabilities" if quality.probabilities else "logits"
    source = f"output {output} holds {what}" if output else f"scores are {what}"
    title = f"Quality on {quality.samples} samples, {quality.classes} classes; {source}"
    table = Table(("", "dense", changed, "change"), tuple(rows), title, ("dense", changed, "change"))
    labelled = quality.dense.top1 is not None
    meaning = "flip rate: samples whose best class is another than the dense model's" + (
        f"; worst class: where the {changed} model is least accurate; calibration error: {BINS} bins of equal width."
        if labelled
        else "; without `labels` in the file there is no accuracy, likelihood or calibration."
    )
    return [table, meaning]


def svg(title: str, quality: Quality, changed: str = "changed") -> str:
    """Two histograms, each of both models: the probability of the best class, and its margin over the second."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="26" font-size="15">{escape(title)}</text>',
        f'<text x="{_LEFT}" y="46" fill="#444">{quality.samples} samples; KL(dense || {escape(changed)}) mean '
        f"{quality.kl_mean:.4f}, 99th percentile {quality.kl_p99:.4f} nats; {quality.flip_rate:.2%} of the best "
        "classes are others</text>",
        *_legend(changed),
        *_histogram("probability of the best class", quality.top1_probabilities, _LEFT),
        *_histogram("margin over the second class", quality.margins, _LEFT + _PLOT_WIDTH + _GAP),
        "</svg>",
        "",
    ]
    return "\n".join(parts)


def _legend(changed: str) -> Iterator[str]:
    for number, (name, colour) in enumerate((("dense", _DENSE), (changed, _CHANGED))):
        left = _LEFT + 90 * number
        yield f'<rect x="{left}" y="58" width="12" height="12" fill="{colour}" fill-opacity="0.6"/>'
        yield f'<text x="{left + 18}" y="68">{escape(name)}</text>'


def _histogram(name: str, pair: tuple[NDArray[np.float64], NDArray[np.float64]], left: int) -> Iterator[str]:
    """Shares of the samples in columns of equal width; the taller axis mark is the tallest column."""
    counted = [np.histogram(np.clip(values, 0, 1), _COLUMNS, (0, 1))[0] / max(len(values), 1) for values in pair]
    highest = max(float(each.max()) for each in counted) or 1.0
    bottom, wide = _TOP + _PLOT_HEIGHT, _PLOT_WIDTH / _COLUMNS
    yield f'<rect x="{left}" y="{_TOP}" width="{_PLOT_WIDTH}" height="{_PLOT_HEIGHT}" fill="#f8f8f8" stroke="#888"/>'
    for shares, colour, shift in zip(counted, (_DENSE, _CHANGED), (0.08, 0.5), strict=True):
        for column, share in enumerate(shares.tolist()):
            if share > 0:
                tall = share / highest * (_PLOT_HEIGHT - 12)
                x, low = left + (column + shift) * wide, column / _COLUMNS
                yield (
                    f'<rect x="{x:.1f}" y="{bottom - tall:.1f}" width="{0.42 * wide:.1f}" height="{tall:.1f}" '
                    f'fill="{colour}" fill-opacity="0.6"><title>{low:.2f} to {low + 1 / _COLUMNS:.2f}: {share:.1%}'
                    "</title></rect>"
                )
    for mark in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = left + mark * _PLOT_WIDTH
        yield f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle" fill="#444">{mark:g}</text>'
    top = bottom - (_PLOT_HEIGHT - 12)
    yield f'<text x="{left - 6}" y="{top + 4}" text-anchor="end" fill="#444">{highest:.0%}</text>'
    yield f'<text x="{left - 6}" y="{bottom + 4}" text-anchor="end" fill="#444">0</text>'
    yield f'<text x="{left + _PLOT_WIDTH / 2:.0f}" y="{bottom + 36}" text-anchor="middle">{name}</text>'
