"""`graphopt plan`: where the memory of a program goes, and the program within a budget of memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphopt.cli import drawing
from graphopt.cli import options as options
from graphopt.cli.compile import is_artifact
from graphopt.cli.progress import progress
from graphopt.errors import GraphoptError
from graphopt.report.document import Block, Report

if TYPE_CHECKING:
    from graphopt.artifact import Artifact
    from graphopt.lowering.memory.fit import Seconds
    from graphopt.lowering.memory.replan import StagePlan
    from graphopt.report.memory.front import Point

EXAMPLES = (
    "graphopt plan model.gopt --svg memory.svg",
    "graphopt plan model.gopt --memory-budget 64MiB -o smaller.gopt",
    "graphopt plan zoo:unet --sweep --svg front.svg",
    "graphopt plan zoo:resnet18 --train --batch 8 --memory-budget 512MiB --svg memory.svg",
)

ROOFLINE = "roofline"
"""The source of costs that measures nothing."""


def command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|ARTIFACT", parser=options.filled, help="A model, which is compiled, or an artifact."
        ),
    ],
    memory_budget: options.MemoryBudget = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Try budgets from what it needs now down to the least that works.")
    ] = False,
    svg: Annotated[
        Path | None,
        typer.Option(
            "--svg", metavar="FILE", parser=options.file, help="Draw memory over time, or with --sweep against time."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="OUT.gopt", parser=options.file, help="Write the planned artifact."),
    ] = None,
    train: Annotated[
        bool, typer.Option("--train", help="Plan a training step of the model, with the options that follow.")
    ] = False,
    batch: Annotated[
        int | None, typer.Option("--batch", metavar="N", min=1, help="Of --train: samples of an update; default 32.")
    ] = None,
    micro_batches: Annotated[
        int | None, typer.Option("--micro-batches", metavar="N", min=1, help="Of --train: equal parts of the batch.")
    ] = None,
    loss: Annotated[
        str | None, typer.Option("--loss", metavar="KIND", help="Of --train: as in graphopt train.")
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option("--optimizer", metavar="KIND", help="Of --train: as sgd{momentum=0.9}, which is the default."),
    ] = None,
    precision: Annotated[
        str | None, typer.Option("--precision", metavar="KIND", help="Of --train: fp32, or fp16 or bf16 mixed with it.")
    ] = None,
    shapes: options.Shapes = None,
    costs: options.Costs = None,
    level: options.Level = None,
    threads: options.Threads = None,
) -> Report:
    """Show where the memory of a program goes; make it fit into a budget, with the same results to the bit."""
    if sweep and memory_budget is not None:
        raise GraphoptError("--sweep tries all budgets and --memory-budget is one; give one of both")
    asked: dict[str, Any] = {"batch": batch, "micro_batches": micro_batches, "loss": loss, "optimizer": optimizer}
    asked["precision"] = precision
    step = {name: value for name, value in asked.items() if value is not None}
    if step and not train:
        raise GraphoptError(f"--{next(iter(step)).replace('_', '-')} is of a training step; give --train too")
    if sweep and output is not None:
        raise GraphoptError("-o writes one program and --sweep plans many; give --memory-budget instead of --sweep")
    if svg is not None:
        options.check_output(svg, "--svg", options.is_drawing)
    if output is not None:
        options.check_output(output, "-o", is_artifact)
        options.check_apart(output, "-o", svg, "is what --svg names too")
    with progress("starting") as say:
        from graphopt.lowering.memory.fit import seconds_of

        artifact = _artifact(model, step if train else None, memory_budget, shapes, costs, level, threads, say)
        seconds, source = seconds_of(artifact, threads, (memory_budget is not None or sweep) and costs != ROOFLINE, say)
        if sweep:
            return _swept(model, artifact, seconds, source, svg, say)
        from graphopt.lowering.memory.replan import replan
        from graphopt.report.memory import account as accounting
        from graphopt.report.memory import plans as reporting
        from graphopt.report.memory import timeline

        planned: Artifact = artifact
        plans: list[StagePlan] = []
        if memory_budget is not None or output is not None:
            say("planning memory")
            planned, plans = replan(artifact, memory_budget, seconds, progress=say)
        if output is not None:
            say("writing the artifact")
            planned.save(output)
    accounts = [accounting.account(stage, planned) for stage in planned.program.stages]
    blocks: list[Block] = [block for each in accounts for block in accounting.blocks(each, len(accounts))]
    if memory_budget is not None:
        blocks.append(reporting.table(plans, memory_budget, source))
    if svg is not None:
        drawing.write(svg, timeline.svg(accounts, model), "--svg")
        blocks.append(f"Memory over time is drawn in {svg}.")
    if output is not None:
        blocks.append(f"The program is in {output}.")
    document: dict[str, Any] = {
        "model": model,
        "budget": memory_budget,
        "seconds": source,
        "stages": [accounting.document(each) for each in accounts],
        "plans": reporting.document(plans) if memory_budget is not None else [],
        "file": None if output is None else str(output),
    }
    return Report(document, blocks)


def _artifact(
    model: str,
    step: dict[str, Any] | None,
    budget: int | None,
    shapes: list[str] | None,
    costs: str | None,
    level: str | None,
    threads: int | None,
    say: Callable[[str], None],
) -> Artifact:
    """The artifact at `model`, or the model there compiled; with `step` a training step of it."""
    path = Path(model)
    if _is_artifact_path(path):
        if step is not None:
            raise GraphoptError(f"{model} is compiled already; name the model whose training step --train shall plan")
        if shapes:
            raise GraphoptError(f"{model} is compiled and its shapes are fixed; leave out --shapes, or name the model")
        from graphopt.artifact import open_artifact

        return open_artifact(path)
    from graphopt.compiler import compile_model

    wanted = options.parse_shapes(shapes)
    compiled = functools.partial(compile_model, memory_budget=budget, costs=costs, level=level, threads=threads)
    if step is not None:
        from graphopt.training.build import step_of

        say("making the training step")
        source = step_of(model, shapes=wanted, **step).model
        say("compiling")
        return compiled(source).artifact
    say("compiling")
    return compiled(model, shapes=wanted).artifact


def _is_artifact_path(path: Path) -> bool:
    if path.is_dir():
        return (path / "manifest.json").is_file()
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return is_artifact(stream.read(64))


def _swept(
    model: str,
    artifact: Artifact,
    seconds: Seconds,
    source: str,
    svg: Path | None,
    say: Callable[[str], None],
) -> Report:
    from graphopt.lowering.memory.sweep import sweep
    from graphopt.report.memory import front

    points: list[Point] = front.pareto(
        [
            front.Point(
                max(plan.total for plan in plans),
                max(plan.stage.arena_bytes for plan in plans),
                sum(plan.solution.seconds for plan in plans) / max(sum(plan.once for plan in plans), 1e-30),
                max(plan.solution.gap for plan in plans),
                sum(len(plan.solution.sequence) - len(plan.staged.steps) for plan in plans),
            )
            for plans in sweep(artifact, seconds, progress=say)
        ]
    )
    blocks = front.blocks(points, source)
    if svg is not None:
        drawing.write(svg, front.svg(points, model), "--svg")
        blocks.append(f"Memory against time is drawn in {svg}.")
    return Report({"model": model, "seconds": source, "points": front.document(points)}, blocks)
