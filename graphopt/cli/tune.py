"""`graphopt tune`: a wider search for the tiles of a model's hottest kernels."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from graphopt.cli import options as options
from graphopt.cli.progress import progress
from graphopt.report.document import Block, Report, Table

EXAMPLES = ("graphopt tune zoo:resnet50 --threads 2", "graphopt tune model.onnx --top 3 --trials 200 --threads 4")


def command(
    model: options.Model,
    trials: Annotated[
        int, typer.Option("--trials", metavar="N", min=1, help="Tiles to measure per kernel, besides the known ones.")
    ] = 64,
    top: Annotated[int, typer.Option("--top", metavar="N", min=1, help="How many kernels, the hottest first.")] = 8,
    target: options.Target = "llvm",
    level: options.Level = None,
    shapes: options.Shapes = None,
    passes: options.Passes = None,
    threads: options.Threads = None,
    seed: options.Seed = 0,
) -> Report:
    """Search the tiles of a model's hottest kernels; compiling then finds the best in the cost table.

    Every measurement is kept at once: an interrupted search goes on where it stopped.
    """
    with progress("starting") as say:
        from graphopt.tune import tune

        results = list(
            tune(
                model,
                trials=trials,
                top=top,
                target=target,
                level=level,
                shapes=options.parse_shapes(shapes),
                passes=passes,
                threads=threads,
                seed=seed,
                progress=say,
            )
        )
    from graphopt.report.units import seconds

    rows, document = [], []
    for tuned in results:
        ratio = tuned.after.seconds / tuned.before.seconds
        shape = "x".join(map(str, tuned.workload.shape))
        rows.append(
            (
                tuned.workload.op_type,
                shape,
                str(tuned.nodes),
                f"{tuned.tried} of {tuned.space}",
                tuned.before.tile or "default",
                seconds(tuned.before.seconds),
                tuned.after.tile or "default",
                seconds(tuned.after.seconds),
                f"{ratio:.2f}",
            )
        )
        document.append(_document(tuned))
    blocks: list[Block] = ["No kernel of this model has tiles to choose from."]
    if rows:
        columns = ("operator", "result", "nodes", "tried", "tile before", "time", "tile now", "time now", "ratio")
        blocks = [Table(columns, tuple(rows), "", ("nodes", "tried", "time", "time now", "ratio"))]
    return Report({"model": model, "kernels": document}, blocks)


def _document(tuned: Any) -> dict[str, Any]:
    def timing(measured: Any) -> dict[str, Any]:
        return {"tile": measured.tile, "seconds": measured.seconds, "low": measured.low, "high": measured.high}

    return {
        "work": tuned.workload.key,
        "nodes": tuned.nodes,
        "tried": tuned.tried,
        "space": tuned.space,
        "before": timing(tuned.before),
        "after": timing(tuned.after),
    }
