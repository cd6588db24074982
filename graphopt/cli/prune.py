"""`graphopt prune`: leave weights out of a model."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graphopt.cli import options as options
from graphopt.cli import quality as quality
from graphopt.cli.progress import progress
from graphopt.errors import GraphoptError
from graphopt.report.document import Report

if TYPE_CHECKING:
    from graphopt.passes.prune.plan import Recipe

EXAMPLES = (
    "graphopt prune model.onnx --sparsity 0.9 --granularity block:16x1 -o pruned.onnx --skip classifier",
    "graphopt prune model.onnx --keep-energy 0.95 --granularity block:16x1 -o pruned.onnx",
    "graphopt prune model.onnx --sparsity 0.5 --granularity filter -o smaller.onnx --eval digits.npz --max-flip 0.02",
)


def command(
    context: typer.Context,
    model: options.Model,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="OUT.onnx", parser=options.file, help="Where to write the model.")
    ],
    sparsity: Annotated[
        float | None,
        typer.Option("--sparsity", metavar="SHARE", help="Share of the weights of every layer that go, as 0.9."),
    ] = None,
    granularity: Annotated[
        str,
        typer.Option(
            "--granularity",
            metavar="NAME",
            help="What goes together: element, row, column, kernel, channel, filter, block:HxW (outputs x inputs), or "
            "N:M, as 2:4.",
        ),
    ] = "element",
    criterion: Annotated[
        str, typer.Option("--criterion", metavar="NAME", help="What a group is worth: energy or magnitude.")
    ] = "energy",
    layer: Annotated[
        list[str] | None,
        typer.Option("--layer", metavar="NAME=SHARE", help="The share of one layer, instead of --sparsity; repeat."),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option("--skip", metavar="NAME", help="A layer that keeps its weights, or a pattern (fc*); repeat."),
    ] = None,
    keep_energy: Annotated[
        float | None,
        typer.Option(
            "--keep-energy",
            metavar="SHARE",
            help="Instead of --sparsity: the fastest model whose layers keep this share of energy in the mean.",
        ),
    ] = None,
    remove: Annotated[
        bool,
        typer.Option("--remove/--no-remove", help="Take whole outputs and inputs out of the model, or make them zero."),
    ] = True,
    shapes: options.Shapes = None,
    costs: options.Costs = None,
    level: options.Level = None,
    threads: options.Threads = None,
    evaluate: quality.Eval = None,
    eval_output: quality.EvalOutput = None,
    max_kl: quality.MaxKl = None,
    max_flip: quality.MaxFlip = None,
    svg: quality.Svg = None,
) -> Report:
    """Leave the weakest weights out of a model and write it as ONNX: zeros, or whole channels that are gone.

    Every product and convolution with constant weights is pruned; most people spare the first and the last with --skip.
    """
    options.check_output(output, "-o", is_onnx)
    options.check_apart(output, "-o", Path(model), "is the model itself, whose dense weights would be lost")
    options.check_apart(output, "-o", svg, "is what --svg names too")
    evaluation = quality.asked(evaluate, eval_output, max_kl, max_flip, svg)
    recipe = _recipe(sparsity, granularity, criterion, layer or [], skip or [], remove)
    _require_one_goal(recipe, keep_energy)
    if keep_energy is None:
        _require_no_weighing(context)
    with progress("starting") as say:
        from graphopt.models.zoo import save
        from graphopt.pruning.model import prune_model
        from graphopt.report.weights import pruning as reporting

        budget = None
        if keep_energy is not None:
            from graphopt.pruning.budget import choose

            fixed = options.parse_shapes(shapes)
            budget = choose(
                model, recipe, keep_energy, costs=costs, level=level, threads=threads, shapes=fixed, progress=say
            )
            recipe = budget.recipe
        pruned = prune_model(model, recipe, shapes=options.parse_shapes(shapes), progress=say)
        judgement = (
            None
            if evaluation is None
            else quality.judge(evaluation, pruned.original, pruned.model, pruned.energy, progress=say)
        )
        say("writing the model")
        if judgement is not None and svg is not None:
            judgement.draw(svg, f"{model}, {recipe.granularity}", "pruned")
        save(pruned.model, output)
    blocks = reporting.blocks(pruned.layers)
    if budget is not None:
        blocks += reporting.budget_blocks(budget)
    if judgement is not None:
        blocks += judgement.blocks("pruned")
    blocks += [f"note: {note}" for note in pruned.notes]
    blocks.append(f"The pruned model is in {output}." + (f" The scores are drawn in {svg}." if svg else ""))
    document = {
        "model": model,
        "file": str(output),
        "granularity": str(recipe.granularity),
        "criterion": str(recipe.criterion),
        "layers": reporting.document(pruned.layers),
        "total": reporting.totals(pruned.layers),
        "budget": None if budget is None else reporting.budget_document(budget),
        "quality": None if judgement is None else judgement.document(),
        "notes": list(pruned.notes),
    }
    return Report(document, blocks)


def is_onnx(beginning: bytes) -> bool:
    """Whether a file with this beginning is an ONNX model: its first field is the IR version."""
    return beginning.startswith(b"\x08")


def _recipe(
    sparsity: float | None, granularity: str, criterion: str, layer: list[str], skip: list[str], remove: bool
) -> Recipe:
    from graphopt.passes.prune.granularity import Granularity
    from graphopt.passes.prune.masks import Criterion
    from graphopt.passes.prune.plan import Recipe

    if criterion not in list(Criterion):
        raise GraphoptError(f"there is no criterion {criterion!r}; there are {', '.join(sorted(Criterion))}")
    parsed = Granularity.parse(granularity)
    layers: dict[str, float] = {}
    for name, share in map(_layer, layer):
        if name in layers:
            raise GraphoptError(f"--layer names {name} twice, with {layers[name]:g} and {share:g}; give one share")
        layers[name] = share
    return Recipe(parsed, sparsity, layers, tuple(skip), Criterion(criterion), remove)


def _require_one_goal(recipe: Recipe, keep_energy: float | None) -> None:
    """Raises GraphoptError unless the options say in one way how much goes."""
    if keep_energy is not None and (recipe.sparsity is not None or recipe.layers):
        raise GraphoptError("--keep-energy chooses the sparsity of every layer; leave out --sparsity and --layer")
    if keep_energy is None and recipe.sparsity is None and not recipe.layers and recipe.granularity.sparsity is None:
        raise GraphoptError("nothing says how much goes; give --sparsity 0.9, --keep-energy 0.95 or --layer NAME=0.9")


def _require_no_weighing(context: typer.Context) -> None:
    """Raises GraphoptError for options on costs; a variable of the environment is for all commands and no matter."""
    for name in ("costs", "level", "threads"):
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise GraphoptError(f"--{name} is about what layers cost, which --keep-energy alone asks; leave it out")


def _layer(text: str) -> tuple[str, float]:
    """NAME=SHARE; names may contain "="."""
    name, _, share = text.rpartition("=")
    with contextlib.suppress(ValueError):
        if name:
            return name, float(share)
    raise GraphoptError(f"--layer {text!r} is not NAME=SHARE, as fc1=0.9")
