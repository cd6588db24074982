"""What pruning did to each layer: a table and JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from graphopt.passes.prune.granularity import Shape
from graphopt.passes.prune.plan import NOT_ASKED
from graphopt.passes.prune.prune import PrunedLayer
from graphopt.pruning.budget import Budget
from graphopt.report.document import Block, Table
from graphopt.report.units import count, seconds


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
        if layer.skipped and layer.reason != NOT_ASKED
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


def budget_document(budget: Budget) -> dict[str, Any]:
    """The choice for each layer, and totals, as JSON values."""
    return {
        "layers": [asdict(layer) for layer in budget.layers],
        "energy": budget.energy,
        "dense_seconds": budget.dense_seconds,
        "seconds": budget.seconds,
        "gap": budget.gap,
    }


def budget_blocks(budget: Budget) -> list[Block]:
    """A row for each layer whose cost depends on its zeros, and what all of them take."""
    columns = ("layer", "sparsity", "energy left", "dense", "pruned", "times faster", "kernel")
    rows = tuple(
        (
            layer.name,
            f"{layer.sparsity:.0%}" if layer.sparsity else "-",
            f"{layer.energy:.1%}",
            seconds(layer.dense_seconds),
            seconds(layer.seconds),
            f"{layer.dense_seconds / layer.seconds:.1f}" if layer.seconds else "-",
            layer.algorithm,
        )
        for layer in budget.layers
    )
    how = "measured here" if all(layer.measured for layer in budget.layers) else "estimates"
    faster = budget.dense_seconds / budget.seconds if budget.seconds else math.inf
    proven = "no other choice is faster" if budget.gap < 5e-4 else f"no other is faster by more than {budget.gap:.1%}"
    return [
        Table(columns, rows, "The sparsity of each layer", columns[1:6]),
        f"These layers take {seconds(budget.dense_seconds)} dense and {seconds(budget.seconds)} pruned ({how}), "
        f"{faster:.1f} times less; they keep {budget.energy:.1%} of their energy in the mean; {proven}.",
    ]


def _shape(shape: Shape) -> str:
    outputs, inputs, taps = shape
    return f"{outputs}x{inputs}" + (f"x{taps}" if taps > 1 else "")
