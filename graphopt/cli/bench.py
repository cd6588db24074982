"""`graphopt bench`: compiled models beside ONNX Runtime."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated

import typer

from graphopt.cli import _options as options
from graphopt.cli._progress import progress
from graphopt.report.document import Report

EXAMPLES = ("graphopt bench zoo:resnet18 model.onnx --threads 2", "graphopt bench --suite light --json")


class Suite(StrEnum):
    """Models that are benchmarked together."""

    LIGHT = "light"
    ZOO = "zoo"
    SEEDED = "seeded"


def command(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL]...", parser=options.filled, help="ONNX files, or zoo:NAME.")
    ] = None,
    suite: Annotated[
        Suite | None,
        typer.Option("--suite", help="Add onnx's light models, the zoo's own, or light ones with weights."),
    ] = None,
    threads: Annotated[int, typer.Option("--threads", metavar="N", min=1, help="Of both sides.")] = 2,
    runs: Annotated[
        int | None, typer.Option("--runs", metavar="N", min=2, help="Counted runs per side; default about 2 seconds.")
    ] = None,
) -> Report:
    """Compile models and time them beside ONNX Runtime, interleaved in one process, with the same threads."""
    if not models and suite is None:
        raise typer.BadParameter("name a model or a --suite", param_hint="MODEL")
    with progress("starting") as say:
        from graphopt.bench import suite as benchmark
        from graphopt.report import benchmark as reporting

        wanted = [*(models or []), *(benchmark.suite(suite.value) if suite is not None else [])]
        document = benchmark.run(wanted, threads, runs, say=say)
    for model, failure in reporting.failures(document):
        sentence = failure if model in failure else f"{model}: {failure}"
        print(f"graphopt: {sentence}", file=sys.stderr)  # noqa: T201
    return Report(document, reporting.blocks(document), failed=reporting.failed(document))
