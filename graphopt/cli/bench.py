"""`graphopt bench`: compiled models beside ONNX Runtime and other runtimes."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from graphopt.cli import _options as options
from graphopt.cli._progress import progress
from graphopt.report.document import Report

EXAMPLES = (
    "graphopt bench zoo:resnet18 model.onnx --threads 2",
    "graphopt bench --suite layers --peer onnxruntime --peer torch",
    "graphopt bench zoo:resnet18 --layers --roofline resnet18.svg",
    "graphopt bench --suite light --json",
)


class Suite(StrEnum):
    """Models that are benchmarked together."""

    LIGHT = "light"
    ZOO = "zoo"
    SEEDED = "seeded"
    LAYERS = "layers"
    GEMM = "gemm"


class Peer(StrEnum):
    """What graphopt is held against; the names of `graphopt.bench.peers.PEERS`."""

    ONNXRUNTIME = "onnxruntime"
    TORCH = "torch"
    TORCH_COMPILE = "torch-compile"
    TVM = "tvm"
    GREEDY = "greedy"
    SINGLE_LAYOUT = "single-layout"


def command(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL]...", parser=options.filled, help="ONNX files, or zoo:NAME.")
    ] = None,
    suite: Annotated[
        list[Suite] | None,
        typer.Option(
            "--suite", help="Add onnx's light models, the zoo's own, light ones with weights, layers or a GEMM."
        ),
    ] = None,
    peer: Annotated[
        list[Peer] | None, typer.Option("--peer", help="What to compare with; repeat. Default onnxruntime.")
    ] = None,
    threads: Annotated[int, typer.Option("--threads", metavar="N", min=1, help="Of every side.")] = 2,
    runs: Annotated[
        int | None, typer.Option("--runs", metavar="N", min=2, help="Counted runs per side; default about 2 seconds.")
    ] = None,
    shapes: options.Shapes = None,
    costs: options.Costs = None,
    layers: Annotated[
        bool, typer.Option("--layers", help="Instead: every kernel of one model, beside the machine's peaks.")
    ] = False,
    roofline: Annotated[
        Path | None,
        typer.Option("--roofline", metavar="FILE.svg", parser=options.path, help="Draw --layers as a roofline."),
    ] = None,
) -> Report:
    """Compile models and time them beside other runtimes, interleaved in one process, with the same threads.

    A peer that cannot run a model is a row that says why; the command fails if graphopt cannot.
    """
    if layers or roofline is not None:
        if len(models or []) != 1 or suite or peer:
            raise typer.BadParameter("--layers and --roofline take one MODEL, no --suite and no --peer")
        return _layers((models or [])[0], threads, runs, shapes, costs, roofline)
    if not models and not suite:
        raise typer.BadParameter("name a model or a --suite", param_hint="MODEL")
    with progress("starting") as say:
        from graphopt.bench import suite as benchmark
        from graphopt.report import benchmark as reporting

        wanted = [*(models or []), *(name for each in suite or [] for name in benchmark.suite(each.value))]
        peers = [each.value for each in dict.fromkeys(peer or [Peer.ONNXRUNTIME])]
        document = benchmark.run(wanted, threads, runs, peers, say, options.parse_shapes(shapes), costs)
    for model, failure in reporting.failures(document):
        sentence = failure if model in failure else f"{model}: {failure}"
        print(f"graphopt: {sentence}", file=sys.stderr)  # noqa: T201
    return Report(document, reporting.blocks(document), failed=reporting.failed(document))


def _layers(
    model: str, threads: int, runs: int | None, shapes: list[str] | None, costs: str | None, file: Path | None
) -> Report:
    if file is not None:
        options.check_output(file, "--roofline")
    with progress("starting") as say:
        from graphopt.bench.layers import profile
        from graphopt.report import layers as reporting
        from graphopt.report import roofline

        document = profile(model, threads, runs, say, options.parse_shapes(shapes), costs)
        if file is not None:
            draft = file.with_name(f".{file.name}.part")
            draft.write_text(roofline.svg(document), encoding="utf-8")
            draft.replace(file)
    return Report(document, reporting.blocks(document))
