"""What a recipe asks of each layer: how many of its weights go, or why it is left alone."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from graphopt.errors import GraphoptError
from graphopt.passes.prune import masks
from graphopt.passes.prune.granularity import INPUTS, OUTPUTS, Granularity
from graphopt.passes.prune.layers import Layer
from graphopt.passes.prune.masks import Criterion
from graphopt.pipeline.pass_base import suggest

NOT_ASKED = "not asked for"
"""The reason of a layer that the recipe does not mention."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to leave out.

    `sparsity` is the share of zero weights of every layer, None for none but those of `layers`, which have their own.
    `skip` are names or patterns (`classifier*`) of layers that keep all weights. With `remove`, whole outputs or inputs
    are taken out of the model where that is possible, instead of being zeros. `alone` says by name why layers are not
    in `layers`, if whoever chose them knows.
    """

    granularity: Granularity
    sparsity: float | None = None
    layers: Mapping[str, float] = field(default_factory=dict)
    skip: tuple[str, ...] = ()
    criterion: Criterion = Criterion.ENERGY
    remove: bool = True
    alone: Mapping[str, str] = field(default_factory=dict)

    @property
    def structured(self) -> bool:
        """Whether its groups are whole outputs or inputs."""
        return self.granularity.kind in OUTPUTS | INPUTS


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """A layer, the share of its weights that is to go, whether the user named it, or why it is left alone."""

    layer: Layer
    sparsity: float
    named: bool = False
    skipped: bool = False
    reason: str = ""


def targets(layers: Sequence[Layer], recipe: Recipe) -> list[Target]:
    """One target for each layer, in order.

    Raises:
        GraphoptError: a sparsity outside of 0..1, a name that no layer has, a granularity that does not fit a layer
            that was named, weights that are not finite, or a layer that would be left without weights.
    """
    if not layers:
        raise GraphoptError("the model has no MatMul, Gemm or Conv with constant weights, so there is nothing to prune")
    wanted = _named(layers, recipe)
    spared = _spared(layers, recipe.skip)
    for layer in layers:
        if id(layer) in wanted and id(layer) in spared:
            raise GraphoptError(f"--layer gives {layer.name} a sparsity and --skip spares it; leave one of them out")
    return [_target(layer, recipe, wanted.get(id(layer)), id(layer) in spared) for layer in layers]


def _named(layers: Sequence[Layer], recipe: Recipe) -> dict[int, float]:
    """The sparsities of layers that have their own."""
    _share(recipe.sparsity, "--sparsity")
    wanted: dict[int, tuple[str, float]] = {}
    for name, sparsity in recipe.layers.items():
        _share(sparsity, f"--layer {name}")
        matching = [layer for layer in layers if name in (layer.name, *layer.sharers)]
        matching = matching or [layer for layer in layers if name in layer.aliases]  # weights may be called as a node
        if not matching:
            raise GraphoptError(f"--layer names {name!r}, which is no layer with weights; {_near(name, layers)}")
        for layer in matching:
            before = wanted.setdefault(id(layer), (name, sparsity))
            if before[1] != sparsity:
                raise GraphoptError(
                    f"--layer gives {before[0]} a sparsity of {before[1]:g} and {name} one of {sparsity:g}, and both "
                    "read the same weights; make them equal"
                )
    return {key: sparsity for key, (_, sparsity) in wanted.items()}


def _spared(layers: Sequence[Layer], patterns: Sequence[str]) -> set[int]:
    spared = set()
    for pattern in patterns:
        matching = {
            id(layer)
            for layer in layers
            if any(pattern == name or fnmatch.fnmatchcase(name, pattern) for name in (*layer.aliases, *layer.sharers))
        }
        if not matching:
            raise GraphoptError(f"--skip names {pattern!r}, which is no layer with weights; {_near(pattern, layers)}")
        spared |= matching
    return spared


def _near(name: str, layers: Sequence[Layer]) -> str:
    """What to write instead."""
    known = [layer.name for layer in layers]
    hint = suggest(name, known)
    return hint if len(known) <= 20 or hint.startswith("did") else f"its {len(known)} layers begin with {known[0]}"


def _share(sparsity: float | None, flag: str) -> None:
    if sparsity is None:
        return
    if not (math.isfinite(sparsity) and 0 <= sparsity <= 1):
        raise GraphoptError(f"{flag} is {sparsity:g}; it must be a share from 0 to 1, as 0.9 for 90 %")
    if sparsity == 1:
        raise GraphoptError(f"{flag} is 1, which leaves a layer without weights; take less, as 0.99")


def _target(layer: Layer, recipe: Recipe, own: float | None, spared: bool) -> Target:
    granularity, named = recipe.granularity, own is not None
    sparsity = own if own is not None else recipe.sparsity
    if granularity.sparsity is not None:
        if sparsity is not None and abs(sparsity - granularity.sparsity) > 1e-6 and sparsity:
            raise GraphoptError(
                f"{granularity} leaves out {granularity.sparsity:.0%} of the weights, not {sparsity:.0%}; leave out "
                "the sparsity"
            )
        if sparsity is None and not recipe.layers:
            sparsity = granularity.sparsity
    if spared:
        return Target(layer, 0.0, named, True, "skipped as asked")
    if sparsity is None:
        return Target(layer, 0.0, named, True, recipe.alone.get(layer.name, NOT_ASKED))
    reason = granularity.misfit(layer.shape, conv=layer.conv)
    if not reason and layer.others:
        reason = f"shares its weights with {', '.join(layer.others[:3])}"
        if named:  # asked for, and so it happens to all of them
            reason = ""
    if not reason and sparsity and granularity.single(layer.shape) and not (recipe.structured and layer.depthwise):
        reason = "has one group of weights, without which nothing would be left"
    if not reason and not sparsity:
        return Target(layer, 0.0, named)
    if not reason:
        weights = layer.weights()
        if not masks.is_finite(weights):
            raise GraphoptError(
                f"the weights of {layer.name} ({layer.node.op_type}) hold NaN or infinity, so their worth is unknown; "
                "correct them, or leave the layer out with --skip"
            )
        if not masks.largest(weights):
            reason = "has no weight that is not zero"
    if reason and named:
        raise GraphoptError(f"--layer {layer.name} {reason}; leave the layer out or choose another --granularity")
    return Target(layer, 0.0 if reason else sparsity, named, bool(reason), reason)
