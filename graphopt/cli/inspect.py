"""`graphopt inspect`: what is in a model before it is compiled."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graphopt.cli import drawing
from graphopt.cli import options as options
from graphopt.cli.progress import progress
from graphopt.errors import GraphoptError
from graphopt.report.document import Report

if TYPE_CHECKING:
    from graphopt.pipeline.explain import Row

EXAMPLES = (
    "graphopt inspect --sparsity pruned.onnx",
    "graphopt inspect --sparsity pruned.onnx --costs roofline --svg layers.svg",
)


def command(
    model: options.Model,
    sparsity: Annotated[
        bool, typer.Option("--sparsity", help="Show how sparse the weights of each layer are.")
    ] = False,
    svg: Annotated[
        Path | None,
        typer.Option("--svg", metavar="FILE", parser=options.file, help="Draw each layer before and after clustering."),
    ] = None,
    costs: options.Costs = None,
    shapes: options.Shapes = None,
    level: options.Level = None,
    threads: options.Threads = None,
) -> Report:
    """Show how sparse a model's weights are, what clustering makes of them, and what is chosen for each layer."""
    if not sparsity:
        raise typer.BadParameter("say what to show: --sparsity")
    if svg is not None:
        options.check_output(svg, "--svg", options.is_drawing)
    with progress("reading the model") as say:
        from graphopt.compiler import rewrite
        from graphopt.options import Options
        from graphopt.passes import DEFAULT, ClusterSparse
        from graphopt.passes.sparse.cluster_channels import PERMUTED
        from graphopt.passes.sparse.survey import survey
        from graphopt.pipeline.explain import explain
        from graphopt.pipeline.pipeline import Pipeline
        from graphopt.report.weights import sparsity as reporting

        before, name, after = DEFAULT.partition(f",{ClusterSparse.name}")
        wanted = options.parse_shapes(shapes)
        prepared = rewrite(model, Options(level=level, costs=costs, shapes=wanted, threads=threads, passes=before))
        say("sorting outputs")
        layers = list(survey(prepared.model, prepared.target.machine.vector_lanes))
        rows: dict[str, Row] = {}
        permuted: list[str] = []
        if layers:
            say("choosing")
            result = Pipeline.parse(f"{name}{after}".lstrip(",")).on(prepared.costs).run(prepared.model)
            rows = {row.node: row for row in explain(result) if row.seconds is not None}
            permuted = [note for step in result.steps for note in step.notes if note.startswith(PERMUTED)]
    blocks = reporting.blocks(layers, rows, permuted)
    if svg is not None:
        if not layers:
            raise GraphoptError(f"{model} has no weights that are zero, so there is nothing to draw; leave out --svg")
        drawing.write(svg, reporting.svg(model, layers), "--svg")
        blocks.append(f"The layers are drawn in {svg}.")
    return Report({"model": model, "layers": reporting.document(layers, rows), "permuted": permuted}, blocks)
