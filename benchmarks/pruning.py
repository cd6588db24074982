"""What pruning does to two networks trained on digits, retrained or not: `python benchmarks/pruning.py [PAGE]`.

Prunes the LeNet and the perceptron of the zoo by several granularities and sparsities, compares each with the dense one
on the 360 digits that training never saw, once as pruned and once after fine-tuning with the zeros kept, and prints a
table in Markdown. With PAGE it replaces the table of that page, docs/pruning.md. Needs scikit-learn.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from graphopt import models
from graphopt.models.retrain import retrain
from graphopt.passes.prune.granularity import Granularity
from graphopt.passes.prune.plan import Recipe
from graphopt.pruning.model import prune_model
from graphopt.verify.evaluate import Samples, score
from graphopt.verify.quality import Quality, compare

BEGIN, END = "<!-- the table of benchmarks/pruning.py -->", "<!-- end -->"

CASES: Mapping[str, tuple[tuple[str, float | None], ...]] = {
    "mlp-digits": (
        *(("element", sparsity) for sparsity in (0.5, 0.8, 0.9, 0.95)),
        ("2:4", None),
        *(("block:16x1", sparsity) for sparsity in (0.5, 0.8, 0.9)),
        *(("filter", sparsity) for sparsity in (0.25, 0.5)),
    ),
    "lenet-digits": (
        *(("element", sparsity) for sparsity in (0.5, 0.8, 0.9)),
        ("kernel", 0.5),
        *(("block:16x1", sparsity) for sparsity in (0.5, 0.8)),
        *(("filter", sparsity) for sparsity in (0.25, 0.5)),
    ),
}


def with_weights(name: str, weights: Mapping[str, Any]) -> onnx.ModelProto:
    """The network of the zoo with other numbers."""
    proto = onnx.load(models.build(name))
    for each in proto.graph.initializer:
        if each.name in weights:
            each.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(weights[each.name]), each.name))
    return proto


def qualities(name: str, granularity: str, sparsity: float | None) -> tuple[float, Quality, Quality]:
    """The energy that is left of all weights, and the quality as pruned and retrained."""
    images, labels = models.digits()
    samples = Samples(Path("digits.npz"), {"image": images}, labels)
    recipe = Recipe(Granularity.parse(granularity), sparsity, remove=False)
    pruned = prune_model(f"zoo:{name}", recipe)
    weights = {key: value.const_value.numpy() for key, value in pruned.model.graph.initializers.items()}
    dense = score(models.build(name), samples).values
    found = [
        compare(dense, score(model, samples).values, labels)
        for model in (pruned.model, with_weights(name, retrain(name, weights)))
    ]
    sizes = {layer.name: layer.before[0] * layer.before[1] * layer.before[2] for layer in pruned.layers}
    energy = sum(layer.energy * sizes[layer.name] for layer in pruned.layers) / sum(sizes.values())
    return energy, found[0], found[1]


def table() -> Iterator[str]:
    """The lines of the table."""
    rows_of = "top-1 | likelihood | KL | flips"
    yield f"| network | granularity | sparsity | energy left | {rows_of} | retrained: {rows_of} |"
    yield "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
    for name, cases in CASES.items():
        dense = None
        for granularity, sparsity in cases:
            energy, first, second = qualities(name, granularity, sparsity)
            if dense is None:
                dense = first.dense
                yield f"| {name} | dense | | | {dense.top1:.1%} | {dense.nll:.3f} | | | | | | |"
            share = Granularity.parse(granularity).sparsity if sparsity is None else sparsity
            rows = (
                f"{each.changed.top1:.1%} | {each.changed.nll:.3f} | {each.kl_mean:.3f} | {each.flip_rate:.1%}"
                for each in (first, second)
            )
            yield f"| {name} | {granularity} | {share:.0%} | {energy:.1%} | {' | '.join(rows)} |"


def main() -> int:
    """Print the table, or put it into the page."""
    lines = []
    for line in table():
        print(line, flush=True)
        lines.append(line)
    if len(sys.argv) > 1:
        page = Path(sys.argv[1])
        before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
        _, _, after = rest.partition(END)
        page.write_text("\n".join([before + BEGIN, *lines, END + after]), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
