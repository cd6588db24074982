"""`graphopt bench`: compiled models beside ONNX Runtime and other runtimes."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graphopt.bench.peers.runtimes import PEERS
from graphopt.cli import options as options
from graphopt.cli.progress import progress
from graphopt.errors import GraphoptError
from graphopt.modes import Precision
from graphopt.report.document import Report

if TYPE_CHECKING:
    from graphopt.bench.sides import Settings

EXAMPLES = (
    "graphopt bench zoo:resnet18 model.onnx --threads 2",
    "graphopt bench --suite layers --peer onnxruntime --peer torch",
    "graphopt bench zoo:resnet18 --layers --roofline resnet18.svg",
    "graphopt bench --suite light --json",
    "graphopt bench --suite train --peer torch --peer torch-compile",
    "graphopt bench zoo:resnet50 --target cuda --precision fp16 --batch 32",
)


class Suite(StrEnum):
    """A named set of models to benchmark."""

    LIGHT = "light"
    ZOO = "zoo"
    SEEDED = "seeded"
    LAYERS = "layers"
    GEMM = "gemm"
    SPARSE = "sparse"
    TRAIN = "train"


def _peer(name: str) -> str:
    if name not in PEERS:
        raise typer.BadParameter(f"{name!r} is not one of {', '.join(PEERS)}")
    return name


def command(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL]...", parser=options.filled, help="ONNX files, or zoo:NAME.")
    ] = None,
    suite: Annotated[
        list[Suite] | None,
        typer.Option(
            "--suite",
            help="Add onnx's light models, the zoo's own, light ones with weights, layers, a GEMM, sparse layers, or "
            "training steps.",
        ),
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            "--peer",
            metavar=f"[{'|'.join(PEERS)}]",
            parser=_peer,
            help="What to compare with; repeat. Default onnxruntime; on an NVIDIA GPU torch both ways.",
        ),
    ] = None,
    threads: Annotated[int, typer.Option("--threads", metavar="N", min=1, help="Threads of every side.")] = 2,
    runs: Annotated[
        int | None, typer.Option("--runs", metavar="N", min=2, help="Counted runs per side; default about 2 seconds.")
    ] = None,
    target: options.Target = "llvm",
    level: options.Level = None,
    precision: Annotated[Precision, typer.Option("--precision", help="Precision of graphopt and of torch.")] = (
        Precision.FP32
    ),
    batch: Annotated[
        int | None,
        typer.Option("--batch", metavar="N", min=1, help="Batch of zoo models; others take --shapes."),
    ] = None,
    shapes: options.Shapes = None,
    inputs: options.Inputs = None,
    costs: options.Costs = None,
    train: Annotated[
        bool, typer.Option("--train", help="Time a training step of each MODEL, of the zoo, beside PyTorch.")
    ] = False,
    layers: Annotated[
        bool, typer.Option("--layers", help="Instead: every kernel of one model, beside the machine's peaks.")
    ] = False,
    roofline: Annotated[
        Path | None,
        typer.Option("--roofline", metavar="FILE.svg", parser=options.file, help="Draw --layers as a roofline."),
    ] = None,
) -> Report:
    """Compile models, check them, and time them beside other runtimes, interleaved in one process.

    On a GPU (--target cuda) runs are replays of a CUDA graph on memory that is not in its caches, timed by the GPU; a
    model that computes something else than ONNX Runtime is not timed.
    A peer that cannot run a model is a row that says why; the command fails if graphopt cannot.
    """
    if layers or roofline is not None:
        if len(models or []) != 1 or suite or peer:
            raise typer.BadParameter("--layers and --roofline take one MODEL, no --suite and no --peer")
    elif not models and not suite:
        raise typer.BadParameter("name a model or a --suite", param_hint="MODEL")
    with progress("starting") as say:
        from graphopt.bench import suite as benchmark
        from graphopt.bench.sides import Settings
        from graphopt.cli import feeds
        from graphopt.report import benchmark as reporting
        from graphopt.report.weights import sparse_grid
        from graphopt.targets import TARGETS

        if target not in TARGETS:
            raise GraphoptError(f"--target {target} is unknown; choose one of {', '.join(TARGETS)}")
        on_device = target != "llvm"
        named = (name for selected in suite or [] for name in benchmark.suite(selected.value, on_device))
        wanted = [benchmark.batched(model, batch) if batch else model for model in (*(models or []), *named)]
        fixed = options.parse_shapes(shapes)
        if layers or roofline is not None:
            settings = Settings(threads, costs, target, level, precision.value)
            return _layers(wanted[0], settings, runs, say, fixed, roofline)
        peers = list(dict.fromkeys(peer)) if peer else None
        if peers is None and suite and set(suite) == {Suite.SPARSE} and not models:
            peers = ["dense", "onnxruntime"]
        given = feeds.given(inputs or [])
        training = train or bool(wanted) and all(model.startswith(f"zoo:{TRAINED}") for model in wanted)
        if training:
            _check_training(wanted, target, precision, fixed or given)
            peers = peers or list(TRAINED_BESIDE)
        document = benchmark.run(
            wanted, threads, runs, peers, say, fixed, costs, target, level, precision.value, given, training
        )
        document["command"] = _command()
    for model, failure in reporting.failures(document):
        sentence = failure if model in failure else f"{model}: {failure}"
        print(f"graphopt: {sentence}", file=sys.stderr)  # noqa: T201
    blocks = reporting.blocks(document)
    if (summary := sparse_grid.grid(document)) is not None:
        blocks.append(summary)
    return Report(document, blocks, failed=reporting.failed(document))


TRAINED = "train/"
"""What the names of the zoo's training steps begin with."""
TRAINED_BESIDE = ("torch",)


def _check_training(models: Sequence[str], target: str, precision: Precision, given: object) -> None:
    """Refuse what a training step is not timed with."""
    if foreign := [model for model in models if not model.startswith("zoo:")]:
        raise GraphoptError(f"--train times models of the zoo, which PyTorch has too, and not {foreign[0]}")
    if target != "llvm" or precision is not Precision.FP32 or given:
        raise GraphoptError("training steps are timed on the CPU in fp32 on random data; leave the other options out")


def _command() -> str:
    """The command line as the user gave it."""
    return shlex.join(["graphopt", *sys.argv[1:]])


def _layers(
    model: str,
    settings: Settings,
    runs: int | None,
    say: Callable[[str], None],
    shapes: dict[str, tuple[int, ...]] | None,
    file: Path | None,
) -> Report:
    if file is not None:
        options.check_output(file, "--roofline", options.is_drawing)
    from graphopt.bench.layers import profile
    from graphopt.report import layers as reporting
    from graphopt.report import roofline

    document = profile(model, settings, runs, say, shapes)
    if file is not None:
        draft = file.with_name(f".{file.name}.part")
        draft.write_text(roofline.svg(document), encoding="utf-8")
        draft.replace(file)
    return Report(document, reporting.blocks(document))
