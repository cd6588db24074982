"""The sparsity of a model's weights: a table, JSON, and a picture of each layer before and after clustering."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.passes.sparse.survey import LayerSparsity
from graphopt.pipeline.explain import Row
from graphopt.report.document import Block, Table
from graphopt.report.units import seconds

_CELL, _GAP, _LEFT, _TOP, _TITLE = 4, 24, 20, 64, 34
_COLOUR = "#2b6cb0"


def document(layers: Sequence[LayerSparsity], rows: Mapping[str, Row]) -> list[dict[str, Any]]:
    """One JSON object for each layer; `rows` are the decisions by node."""
    return [_object(layer, rows.get(layer.node)) for layer in layers]


def _object(layer: LayerSparsity, row: Row | None) -> dict[str, Any]:
    facts = {name: value for name, value in asdict(layer).items() if name not in ("before", "after")}
    if row is None:
        return {**facts, "decision": None}
    return {
        **facts,
        "decision": row.decision,
        "seconds": row.seconds,
        "instead_of": row.other,
        "instead_of_seconds": row.other_seconds,
        "measured": row.measured,
        "reason": row.reason,
    }


def blocks(layers: Sequence[LayerSparsity], rows: Mapping[str, Row], permuted: Sequence[str]) -> list[Block]:
    """The table, what its columns mean, and what was permuted when the model was compiled: a sentence for each."""
    if not layers:
        return ["No product or convolution has constant weights that are zero."]
    width = layers[0].width
    shares = ("outputs x inputs", "not zero", "given", "clustered", "random", "bound")
    columns = ("layer", "operator", *shares, "chosen", "cost", "instead of", "at")
    table = Table(
        columns,
        tuple(
            (
                layer.node,
                layer.operator,
                f"{layer.outputs}x{layer.inputs}",
                *(f"{share:.1%}" for share in (layer.density, layer.given, layer.clustered, layer.random, layer.bound)),
                *_decision(rows.get(layer.node)),
            )
            for layer in layers
        ),
        "Sparse weights",
        (*shares, "cost", "at"),
    )
    meaning = (
        f"given, clustered: vectors of {width} outputs that hold a weight, with the outputs as they are, and sorted; "
        "random: of a random mask as dense; bound: the least of any order."
    )
    if not permuted:
        return [table, meaning]
    return [table, meaning, "\n".join(["Permuted at no cost in a run:", *(f"  {sentence}" for sentence in permuted)])]


def _decision(row: Row | None) -> tuple[str, str, str, str]:
    if row is None or row.seconds is None:
        return "-", "-", "-", "-"
    other = "-" if row.other_seconds is None else seconds(row.other_seconds)
    return row.decision, seconds(row.seconds), row.other or "-", other


def svg(model: str, layers: Sequence[LayerSparsity]) -> str:
    """Each layer as two pictures of its matrix, outputs downwards: as given, and clustered."""
    heights = [_TITLE + len(layer.before) * _CELL + _GAP for layer in layers]
    widest = max((layer.before.shape[1] for layer in layers), default=0) * _CELL
    width, height = max(640, 2 * _LEFT + 2 * widest + _GAP), _TOP + sum(heights)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{_LEFT}" y="26" font-size="15">{escape(model)}: weights that are not zero</text>',
        f'<text x="{_LEFT}" y="44" fill="#444">outputs downwards, inputs to the right; left as given, right '
        "clustered; the first of each</text>",
    ]
    top = _TOP
    for layer, tall in zip(layers, heights, strict=True):
        parts += _layer(layer, top, _LEFT + widest + _GAP)
        top += tall
    return "\n".join([*parts, "</svg>", ""])


def _layer(layer: LayerSparsity, top: int, second: int) -> Iterator[str]:
    title = (
        f"{layer.node}: {layer.outputs} x {layer.inputs}, {layer.density:.1%} not zero; vectors of {layer.width}: "
        f"{layer.given:.1%} given, {layer.clustered:.1%} clustered, {layer.random:.1%} at random"
    )
    yield f'<text x="{_LEFT}" y="{top + 20}">{escape(title)}</text>'
    yield from _matrix(layer.before, _LEFT, top + _TITLE)
    yield from _matrix(layer.after, second, top + _TITLE)


def _matrix(support: NDArray[np.bool_], left: int, top: int) -> Iterator[str]:
    rows, columns = support.shape
    yield (
        f'<rect x="{left}" y="{top}" width="{columns * _CELL}" height="{rows * _CELL}" fill="#f8f8f8" stroke="#888"/>'
    )
    cells = "".join(
        f"M{left + column * _CELL} {top + row * _CELL}h{_CELL}v{_CELL}h-{_CELL}z"
        for row, column in zip(*(places.tolist() for places in np.nonzero(support)), strict=True)
    )
    yield f'<path d="{cells}" fill="{_COLOUR}"/>'
