"""Leave weights out: zeros by any granularity, and whole channels that are taken out of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.graph.edit import Editor
from graphopt.graph.edit import dims as static_dims
from graphopt.passes.prune import axes as axis_labels
from graphopt.passes.prune import masks, remove
from graphopt.passes.prune.axes import Dims
from graphopt.passes.prune.axis_rules import RULES
from graphopt.passes.prune.granularity import Granularity, Shape
from graphopt.passes.prune.layers import Layer, layers, numbers
from graphopt.passes.prune.masks import Criterion
from graphopt.passes.prune.plan import Recipe, Target, targets
from graphopt.passes.prune.remove import Wish
from graphopt.passes.prune.structure import structure
from graphopt.pipeline.pass_base import Pass, PassResult, Refusal, option


@dataclass(frozen=True, slots=True)
class PrunedLayer:
    """What became of a layer.

    `before` and `after` are [outputs, inputs, taps]; `groups` what its weights consist of; `asked` the share of its
    weights that was to go, `reached` the share that is zero or gone; `energy` the share of the sum of squares that is
    left. `reason` says why it was left alone (`skipped`), or why its channels are zeros and not gone.
    """

    name: str
    operator: str
    before: Shape
    after: Shape
    groups: int
    asked: float
    reached: float
    energy: float
    skipped: bool = False
    reason: str = ""

    @property
    def removed(self) -> bool:
        """Whether the layer became smaller."""
        return self.before != self.after


@dataclass(frozen=True)
class Prune(Pass):
    """Leave out the weakest weights of every product and convolution: numbers change, and by how much is not judged.

        w = [[.1, 2.], [3., .2]]  ->  w = [[0., 2.], [3., 0.]]      half of them, single ones

    `graphopt prune` does the same to a model file and compares it with the dense one on data.
    """

    name: ClassVar[str] = "prune"

    sparsity: float = option(0.5, "share of the weights of every layer that go; of N:M the granularity says it")
    granularity: str = option(
        "element", "what goes together: element, row, column, kernel, channel, filter, block:HxW, N:M"
    )
    criterion: Criterion = option(Criterion.ENERGY, "what a group of weights is worth")
    remove: bool = option(True, "take whole outputs and inputs out of the model instead of making them zero")

    def call(self, model: ir.Model) -> PassResult:
        """Prune the main graph; a layer that is left alone is a Refusal."""
        granularity = Granularity.parse(self.granularity)
        sparsity = self.sparsity if granularity.sparsity is None else None
        recipe = Recipe(granularity, sparsity, criterion=self.criterion, remove=self.remove)
        pruned = prune(model, recipe, static_dims)
        refusals = tuple(Refusal(layer.name, layer.reason) for layer in pruned if layer.skipped)
        notes = tuple(
            f"{layer.name}: {layer.reached:.1%} of the weights are gone, {layer.energy:.1%} of the energy is left"
            for layer in pruned
            if not layer.skipped
        )
        return PassResult(model, any(layer.reached > 0 for layer in pruned), refusals, (), notes)


def prune(model: ir.Model, recipe: Recipe, dims: Dims) -> list[PrunedLayer]:
    """Prune the main graph of `model` in place.

    Args:
        dims: the static shape of a value, needed where whole outputs or inputs go.

    Raises:
        GraphoptError: the recipe does not fit the model (`plan.targets`); nothing is changed then.
    """
    asked = targets(layers(model.graph), recipe)
    before = {id(each.layer): (each.layer.shape, _facts(each.layer)) for each in asked}
    channels: dict[int, str] = {}
    wishes: list[Wish] = []
    if recipe.structured:
        axes = axis_labels.find(model.graph, dims, RULES)
        asked, wishes, channels = structure(asked, axes, recipe)
    for each in asked:
        if each.sparsity > 0 and channels.get(id(each.layer), "zeros"):
            _mask(each, recipe)
    if wishes:
        gone = remove.choose(axes, wishes)
        (remove.remove if recipe.remove else remove.blank)(Editor(model, Prune.name), axes, gone)
    return [_report(each, before[id(each.layer)], recipe, channels.get(id(each.layer), "")) for each in asked]


def _mask(target: Target, recipe: Recipe) -> None:
    weights = np.array(target.layer.weights(), order="C")
    masks.prune(weights, recipe.granularity, recipe.criterion, target.sparsity)
    target.layer.replace(weights)


def _facts(layer: Layer) -> tuple[int, float, float]:
    """Weights, their scale, and their energy at that scale."""
    weights = layer.weights()
    if not masks.is_finite(weights):
        return weights.size, 1.0, 0.0
    scale = masks.largest(weights) or 1.0
    return weights.size, scale, masks.energy(weights, scale)


def _report(target: Target, before: tuple[Shape, tuple[int, float, float]], recipe: Recipe, reason: str) -> PrunedLayer:
    (shape, (size, scale, energy)), layer = before, target.layer
    group = recipe.granularity.group(shape)
    fits = not recipe.granularity.misfit(shape, conv=layer.conv)
    groups = size // (group[0] * group[1] * group[2]) if fits else 0
    array = numbers(layer.node.inputs[1])
    assert array is not None
    turned = layer.node.op_type == "MatMul" or (
        layer.node.op_type == "Gemm" and not layer.node.attributes.get_int("transB", 0)
    )
    array = array.T if turned else array
    weights = array.reshape(array.shape[0], array.shape[1], -1)
    after = (weights.shape[0], weights.shape[1], weights.shape[2])
    left = sum(int(np.count_nonzero(part)) for part in weights)
    kept = masks.energy(weights, scale) / energy if energy else 1.0
    return PrunedLayer(
        layer.name,
        layer.node.op_type,
        shape,
        after,
        groups,
        target.sparsity,
        1 - left / size,
        kept,
        target.skipped,
        target.reason or reason,
    )
