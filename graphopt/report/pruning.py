"""What pruning did to each layer: a table and JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from graphopt.passes.prune.granularity import Shape
from graphopt.passes.prune.prune import PrunedLayer
from graphopt.report.document import Block, Table
from graphopt.report.units import count


def document(layers: Sequence[PrunedLayer]) -> list[dict[str, Any]]:
    """One JSON object for each layer."""
    return [
        {
            "layer": layer.name,
            "operator": layer.operator,
            "outputs_inputs_taps": list(layer.before),
            "outputs_inputs_taps_after": list(layer.after),
            "groups": layer.groups,
            "sparsity_asked": layer.asked,
            "sparsity": layer.reached,
            "energy": layer.energy,
            "removed": layer.removed,
            "skipped": layer.skipped,
            "reason": layer.reason or None,
        }
        for layer in layers
    ]


def totals(layers: Sequence[PrunedLayer]) -> dict[str, Any]:
    """Weights before, weights that are not zero afterwards, and the share that is gone."""
    before = sum(math.prod(layer.before) for layer in layers)
    left = sum(round(math.prod(layer.before) * (1 - layer.reached)) for layer in layers)
    stored = sum(math.prod(layer.after) for layer in layers)
    return {"weights": before, "stored": stored, "not_zero": left, "sparsity": 1 - left / before if before else 0.0}


def blocks(layers: Sequence[PrunedLayer]) -> list[Block]:
    """A row for each layer that was asked for, the layers that were left alone with their reasons, and totals."""
    resized = any(layer.removed for layer in layers)
    notes = any(layer.reason and not layer.skipped for layer in layers)
    columns = (
        "layer",
        "operator",
        "outputs x inputs",
        *(["after"] if resized else []),
        "groups",
        "asked",
        "zero or gone",
    )
    rows = tuple(
        (
            layer.name,
            layer.operator,
            _shape(layer.before),
            *([_shape(layer.after)] if resized else []),
            count(layer.groups),
            f"{layer.asked:.1%}",
            f"{layer.reached:.1%}",
            f"{layer.energy:.1%}",
            *([layer.reason] if notes else []),
        )
        for layer in layers
        if not layer.skipped
    )
    table = Table(
        (*columns, "energy left", *(["note"] if notes else [])),
        rows,
        "Pruned layers",
        ("outputs x inputs", "after", "groups", "asked", "zero or gone", "energy left"),
    )
    found: list[Block] = [table]
    alone = tuple(
        (layer.name, layer.operator, _shape(layer.before), layer.reason)
        for layer in layers
        if layer.skipped and layer.reason != "not asked for"
    )
    if alone:
        found.append(Table(("layer", "operator", "outputs x inputs", "because it"), alone, "Left alone", ()))
    total = totals(layers)
    smaller = f", {count(total['stored'])} of them stored" if total["stored"] < total["weights"] else ""
    found.append(
        f"{count(total['weights'])} weights, of which {count(total['not_zero'])} are left: {total['sparsity']:.1%} are "
        f"zero or gone{smaller}. Energy: the sum of the squares of what is left over that of all."
    )
    return found


def _shape(shape: Shape) -> str:
    outputs, inputs, taps = shape
    return f"{outputs}x{inputs}" + (f"x{taps}" if taps > 1 else "")
