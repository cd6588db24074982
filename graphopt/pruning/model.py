"""Prune a model as the user gave it: the same inputs, outputs, opset and names, with fewer weights.

pruned = prune_model("model.onnx", Recipe(Granularity.parse("block:16x1"), 0.9))
pruned.model, pruned.layers
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import onnx_ir.passes.common as common

from graphopt.errors import GraphoptError, ModelError, VerificationError
from graphopt.frontend.fold import lift_constants
from graphopt.frontend.load import as_given
from graphopt.frontend.shapes import fix_inputs, infer_shapes, open_dims
from graphopt.graph.edit import dims
from graphopt.passes.prune.axes import Dims
from graphopt.passes.prune.layers import layers as layers_of
from graphopt.passes.prune.plan import Recipe
from graphopt.passes.prune.prune import PrunedLayer, prune
from graphopt.verify.oracle import TOLERANCES, Tolerance, compare, random_inputs, run_onnxruntime

if TYPE_CHECKING:
    import onnx

__all__ = ["Pruned", "PrunedLayer", "Recipe", "prune_model"]

_LOOSE = {name: Tolerance(20 * each.rtol, 20 * each.atol) for name, each in TOLERANCES.items()}
"""A smaller model sums in another order at every layer, and its differences are judged end to end."""


@dataclass(frozen=True, slots=True)
class Pruned:
    """The pruned model, what became of every layer, and the model it was made of, which is not modified."""

    model: ir.Model
    layers: tuple[PrunedLayer, ...]
    original: Path | onnx.ModelProto | ir.Model
    notes: tuple[str, ...] = ()

    @property
    def energy(self) -> Mapping[str, float]:
        """The share of the sum of squares that each layer keeps, of those that were pruned."""
        return {layer.name: layer.energy for layer in self.layers if not layer.skipped}


def prune_model(
    source: Any,
    recipe: Recipe,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    progress: Callable[[str], None] | None = None,
    example_inputs: Any = None,
) -> Pruned:
    """Prune the model `source`, which is as in `graphopt.load`.

    Where channels are taken out, the smaller model is run beside the one with zeros in their place, and given up if
    they disagree: then the zeros stay, and `notes` says so.

    Args:
        shapes: static shapes of inputs, needed where channels are taken out and more is open than the batch.

    Raises:
        GraphoptError: the recipe does not fit the model, or the model cannot be read.
    """
    say = progress or (lambda _: None)
    say("reading the model")
    given = as_given(source, example_inputs)
    model, notes = given.model, [*given.notes, *_renamed(given.model.graph)]
    known: Dims = lambda _: None  # noqa: E731
    if recipe.structured:
        say("inferring shapes")
        known, twin, reason = _static(model, shapes or {})
        notes += [f"the shapes in the model are not known, so no channel is taken out: {reason}"] if reason else []
    say("pruning")
    if not (recipe.structured and recipe.remove):
        layers = prune(model, recipe, known)
        return Pruned(model, _none_left_empty(layers), given.original, tuple(notes))
    zeros = model.clone()
    layers = prune(model, recipe, known)
    if any(layer.removed for layer in layers):
        say("comparing the smaller model with the one that has zeros")
        blanked = prune(zeros, replace(recipe, remove=False), known)
        reason = _disagreement(zeros, model, twin)
        if reason:
            notes.append(f"channels are zeros, and not taken out: the smaller model {reason}")
            model, layers = zeros, blanked
    return Pruned(model, _none_left_empty(layers), given.original, tuple(notes))


def _renamed(graph: ir.Graph) -> list[str]:
    """A sentence for each name that several nodes have, where a layer has another here."""
    found = layers_of(graph)
    repeated = dict.fromkeys(layer.node.name for layer in found if layer.node.name not in (None, "", layer.name))
    return [
        f"several nodes of the file are called {name}; here its layers are "
        f"{', '.join(layer.name for layer in found if layer.node.name == name)}"
        for name in repeated
    ]


def _none_left_empty(layers: Sequence[PrunedLayer]) -> tuple[PrunedLayer, ...]:
    """The layers, if something was asked of one of them, and each has a weight left."""
    if all(layer.skipped for layer in layers):
        reasons = "; ".join(f"{layer.name} {layer.reason}" for layer in layers[:3])
        raise GraphoptError(f"no layer can be pruned so ({reasons}); choose another --granularity or name a --layer")
    return tuple(layers)


def _static(model: ir.Model, shapes: Mapping[str, Sequence[int]]) -> tuple[Dims, ir.Model, str]:
    """The static shapes of the values of the main graph, a copy of the model that has them, and why there are none."""
    twin = model.clone()
    common.RemoveInitializersFromInputsPass()(twin)
    lift_constants(twin)
    open_dims(twin)
    fix_inputs(twin, {name: tuple(each) for name, each in shapes.items()})
    try:
        infer_shapes(twin)
    except ModelError as error:  # onnx's inference is stricter than runtimes are
        return lambda _: None, twin, str(error)
    found = {}
    values = [*twin.graph.inputs, *twin.graph.initializers.values(), *(v for node in twin.graph for v in node.outputs)]
    for value in values:
        if value.name and (extents := dims(value)) is not None:
            found[value.name] = extents
    return lambda value: None if value is None or value.name is None else found.get(value.name), twin, ""


def _disagreement(expected: ir.Model, actual: ir.Model, twin: ir.Model) -> str:
    """What is wrong with `actual`, as the end of a sentence; "" where it computes the same.

    `twin` has the static inputs that random ones are drawn for.
    """
    try:
        feeds = random_inputs(twin, 0)
        before = run_onnxruntime(expected, feeds)
    except GraphoptError as error:
        return f"cannot be compared with them ({error})"
    try:
        after = run_onnxruntime(actual, feeds)
    except VerificationError as error:
        return f"does not run ({error})"
    mismatches = compare(before, after, _LOOSE)
    return f"computes something else ({mismatches[0].message})" if mismatches else ""
