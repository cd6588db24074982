"""Choose how sparse each layer becomes: the fastest model that keeps a share of the energy, by the costs of `compile`.

    budget = choose("model.onnx", Recipe(Granularity.parse("block:16x1")), 0.95, costs="measured")
    prune_model("model.onnx", budget.recipe)

Every layer is offered a few sparsities. The model is pruned to each of them and put through the pipeline of `compile`,
whose passes weigh sparse kernels with the pattern that they would have beside dense ones. A multiple-choice knapsack
(`graphopt.solve.pruning`) chooses among them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from graphopt.compiler import rewrite
from graphopt.errors import GraphoptError
from graphopt.frontend.load import as_given
from graphopt.options import Options
from graphopt.passes.prune.plan import Recipe
from graphopt.passes.prune.prune import PrunedLayer, prune
from graphopt.pipeline.pass_base import Choice
from graphopt.solve import pruning as solver

SPARSITIES = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)
"""What every layer is offered, beside staying as it is."""

LEAST = 0.25
"""No layer keeps less of its energy, unless less is asked of all: a mean alone would wipe some layers out."""


@dataclass(frozen=True, slots=True)
class LayerChoice:
    """What was chosen for a layer: its sparsity, the energy that is left, seconds dense and pruned, and the algorithm.

    `measured` tells whether the seconds were, or are estimates.
    """

    name: str
    sparsity: float
    energy: float
    dense_seconds: float
    seconds: float
    algorithm: str
    measured: bool


@dataclass(frozen=True, slots=True)
class Budget:
    """The chosen sparsities as a recipe, a row for each layer whose cost depends on its zeros, and totals.

    `energy` is the mean over these layers of what they keep; the recipe says why others are left alone; `gap` bounds
    how much faster another choice could be.
    """

    recipe: Recipe
    layers: tuple[LayerChoice, ...]
    energy: float
    dense_seconds: float
    seconds: float
    gap: float


def choose(
    source: Any,
    recipe: Recipe,
    keep_energy: float,
    *,
    costs: str | None = None,
    level: str | None = None,
    threads: int | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Budget:
    """Choose a sparsity for every layer of the model `source`.

    A layer keeps the share of the sum of its squares that is left. All layers that zeros can make faster count alike,
    whatever their scale and size: to first order the relative errors that layers make add up on the way to the output.
    None keeps less than `LEAST`.

    Args:
        recipe: granularity, criterion and layers to skip; its sparsities are not used.
        keep_energy: the share of the energy that stays, above 0 and up to 1.

    Raises:
        GraphoptError: a number is out of range, the granularity takes channels out, or no layer becomes faster.
    """
    say = progress or (lambda _: None)
    if not 0 < keep_energy <= 1:
        raise GraphoptError(f"--keep-energy is {keep_energy:g}; it must be a share above 0 and up to 1, as 0.95")
    if recipe.structured:
        raise GraphoptError(
            f"--keep-energy weighs zeros that kernels skip, and {recipe.granularity} takes channels out, which changes "
            "the cost of other layers; choose element, kernel, block:HxW or N:M, or give --sparsity"
        )
    given = as_given(source)
    asked = Options(costs=costs, level=level, threads=threads, shapes=None if shapes is None else dict(shapes))
    fixed = recipe.granularity.sparsity
    offered = SPARSITIES if fixed is None else (fixed,)
    say("weighing the dense model")
    dense = _seconds(rewrite(given.model.clone(), asked).result.steps)
    pruned: dict[float, list[PrunedLayer]] = {}
    weighed: dict[float, dict[str, Choice]] = {}
    for sparsity in offered:
        say(f"weighing layers at {sparsity:.0%}")
        trial = given.model.clone()
        pruned[sparsity] = prune(trial, replace(recipe, sparsity=sparsity, layers={}), lambda _: None)
        weighed[sparsity] = _seconds(rewrite(trial, asked).result.steps)
    names = [layer.name for layer in pruned[offered[0]] if not layer.skipped]
    kept = {sparsity: {layer.name: layer for layer in layers} for sparsity, layers in pruned.items()}
    alone = {layer.name: layer.reason for layer in pruned[offered[0]] if layer.skipped}
    rows: dict[str, list[tuple[float, float, Choice | None]]] = {}
    for name in names:
        found = [(sparsity, _find(name, names, weighed[sparsity])) for sparsity in offered]
        base = _dense_seconds(_find(name, names, dense), [choice for _, choice in found])
        if base is None:
            alone[name] = "has no sparse kernel, so zeros gain nothing"
            continue
        rows[name] = [(0.0, base, _find(name, names, dense))]
        rows[name] += [
            (sparsity, choice.seconds, choice)
            for sparsity, choice in found
            if choice is not None and kept[sparsity][name].energy >= min(LEAST, keep_energy)
        ]
    problem = solver.Problem(
        tuple(
            tuple(
                solver.Option(seconds, 0.0 if not sparsity else _lost(kept[sparsity][name]) / len(rows))
                for sparsity, seconds, _ in options
            )
            for name, options in rows.items()
        ),
        1 - keep_energy,
    )
    solution = solver.solve(problem)
    chosen = [
        _row(name, options[index], options[0], kept)
        for (name, options), index in zip(rows.items(), solution.chosen, strict=True)
    ]
    if not any(layer.sparsity for layer in chosen):
        raise GraphoptError(
            f"no layer becomes faster while {keep_energy:.1%} of the energy stays; keep less, or choose another "
            "--granularity"
        )
    shares = {layer.name: layer.sparsity for layer in chosen}
    return Budget(
        replace(recipe, sparsity=None, layers=shares, skip=(), alone=alone),
        tuple(chosen),
        1 - solution.loss,
        math.fsum(layer.dense_seconds for layer in chosen),
        solution.seconds,
        solution.gap,
    )


def _lost(layer: PrunedLayer) -> float:
    return max(0.0, 1 - layer.energy)


def _seconds(steps: Sequence[Any]) -> dict[str, Choice]:
    """The last choice about each node."""
    return {choice.node: choice for step in steps for choice in step.choices}


def _find(name: str, names: Sequence[str], choices: Mapping[str, Choice]) -> Choice | None:
    """The choice about the layer `name`, which passes may have renamed to `name.folded`."""
    if name in choices:
        return choices[name]
    known = set(names)
    for node, choice in choices.items():
        if node.startswith(f"{name}.") and node not in known and node.removeprefix(f"{name}.").startswith("folded"):
            return choice
    return None


def _dense_seconds(dense: Choice | None, others: Sequence[Choice | None]) -> float | None:
    """The least seconds of a kernel that reads all weights, of those that any choice compared."""
    found = []
    for choice in (dense, *others):
        if choice is not None:
            found += [(choice.algorithm, choice.seconds)]
            found += [(other.algorithm, other.seconds) for other in choice.alternatives if other.seconds is not None]
    whole = [seconds for algorithm, seconds in found if not algorithm.startswith("sparse")]
    sparse = any(algorithm.startswith("sparse") for algorithm, _ in found)
    return min(whole) if whole and sparse else None


def _row(
    name: str,
    taken: tuple[float, float, Choice | None],
    dense: tuple[float, float, Choice | None],
    kept: Mapping[float, Mapping[str, PrunedLayer]],
) -> LayerChoice:
    sparsity, seconds, choice = taken
    energy = kept[sparsity][name].energy if sparsity else 1.0
    algorithm = choice.algorithm if choice is not None else "dense"
    measured = any(each is not None and each.measured for each in (choice, dense[2]))
    return LayerChoice(name, sparsity, energy, dense[1], seconds, algorithm, measured)
