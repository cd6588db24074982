"""Which layers can lose whole outputs or inputs, and why the others get zeros or are left alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt.passes.prune import masks
from graphopt.passes.prune.axes import Axes
from graphopt.passes.prune.granularity import OUTPUTS
from graphopt.passes.prune.layers import Layer
from graphopt.passes.prune.plan import Recipe, Target
from graphopt.passes.prune.remove import Wish


def structure(asked: Sequence[Target], axes: Axes, recipe: Recipe) -> tuple[list[Target], list[Wish], dict[int, str]]:
    """The targets again, what is wished of channels that can be followed, and for each layer why it gets zeros ("")."""
    outputs = recipe.granularity.kind in OUTPUTS
    behind = _behind_layers([each.layer for each in asked])
    last = _last_layers([each.layer for each in asked])
    result, wishes, reasons = [], [], {}
    for each in asked:
        layer = each.layer
        labels = axes.outputs(layer.node) if outputs else axes.inputs(layer.node)
        if each.skipped or not each.sparsity:
            if labels is not None:  # a family that a spared layer belongs to keeps its channels
                axes.fixed |= np.isin(axes.root, labels)
            result.append(each)
            continue
        reason = ""
        if layer.depthwise and outputs:
            reason = "is depthwise: its channels are those that it reads"
        elif labels is None and not outputs and layer.node not in behind:
            reason = "reads the model's inputs, no channels of another layer"
        elif outputs and (
            layer.node in last if labels is None else axes.seen[labels].all() and axes.alone(layer.node, labels)
        ):
            reason = "its outputs are the model's"
        if reason and not each.named:
            result.append(Target(layer, 0.0, False, True, reason))
            continue
        result.append(each)
        if len(layer.sharers) > 1:
            reason = reason or "zeros: several nodes read its weights"
        elif labels is None or axes.fixed[labels].all():
            reason = reason or "zeros: other nodes fix the number of its channels"
        elif not _whole(layer, recipe):
            reason = reason or "zeros: a column is one tap of its window"
        reasons[id(layer)] = reason
    for each in result:
        labels = axes.outputs(each.layer.node) if outputs else axes.inputs(each.layer.node)
        if each.sparsity > 0 and reasons.get(id(each.layer)) == "" and labels is not None:
            if axes.fixed[labels].all():  # by a layer that is spared
                reasons[id(each.layer)] = "zeros: a layer that is left alone shares its channels"
                continue
            group = recipe.granularity.group(each.layer.shape)
            worth = masks.scores(each.layer.weights(), group, recipe.criterion)
            wishes.append(Wish(each.layer, labels, worth.reshape(-1).astype(np.float64), each.sparsity))
    return result, wishes, reasons


def _behind_layers(found: Sequence[Layer]) -> set[ir.Node]:
    """The nodes whose first input is computed from the results of a layer."""
    graph = found[0].node.graph
    assert graph is not None
    weighted = {layer.node for layer in found}
    follows: set[ir.Value] = set()
    behind = set()
    for node in graph:
        if node.inputs and node.inputs[0] in follows:
            behind.add(node)
        if node in weighted or any(value in follows for value in node.inputs if value is not None):
            follows.update(node.outputs)
    return behind


def _last_layers(found: Sequence[Layer]) -> set[ir.Node]:
    """The layers from which an output of the model can be reached without passing another layer."""
    graph = found[0].node.graph
    assert isinstance(graph, ir.Graph)
    weighted = {layer.node for layer in found}
    last: set[ir.Node] = set()
    seen: set[ir.Node] = set()
    pending = [value.producer() for value in graph.outputs]
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in weighted:
            last.add(node)
        else:
            pending += [value.producer() for value in node.inputs if value is not None]
    return last


def _whole(layer: Layer, recipe: Recipe) -> bool:
    """Whether the groups are whole outputs or inputs: a column is one tap of an input."""
    return recipe.granularity.kind != "column" or layer.shape[2] == 1
