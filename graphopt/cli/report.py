"""`graphopt report`: the contents of an artifact, and its memory plan as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graphopt.cli import drawing
from graphopt.cli import options as options
from graphopt.report.document import Report

EXAMPLES = ("graphopt report model.gopt", "graphopt report model.gopt --svg plan.svg")


def command(
    context: typer.Context,
    artifact: options.ArtifactPath,
    svg: Annotated[
        Path | None,
        typer.Option("--svg", metavar="FILE", parser=options.file, help="Draw the memory plan: time by offset."),
    ] = None,
) -> Report:
    """Show what is in an artifact: target, stages, choices, memory plan, fallbacks."""
    if svg is not None:
        options.check_output(svg, "--svg", options.is_drawing)
    from graphopt.artifact import open_artifact
    from graphopt.report import contents, memory_plan

    opened = open_artifact(artifact, check_cpu=False)  # any machine may inspect it
    full, free = ("█", "·") if context.obj.terminal else ("#", ".")
    blocks = contents.blocks(opened, full, free)
    if svg is not None:
        drawing.write(svg, memory_plan.svg([memory_plan.plan(stage) for stage in opened.program.stages]), "--svg")
        blocks.append(f"The memory plan is drawn in {svg}.")
    return Report({"artifact": str(artifact), **contents.document(opened)}, blocks)
