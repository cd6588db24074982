"""`graphopt verify`: a compiled model against ONNX Runtime on the user's original model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphopt.cli import options as options
from graphopt.cli.progress import progress
from graphopt.errors import GraphoptError
from graphopt.report.document import Block, Report

if TYPE_CHECKING:
    import onnx_ir as ir

    from graphopt.artifact import Artifact

EXAMPLES = (
    "graphopt verify model.onnx",
    "graphopt verify model.onnx model.gopt --samples 5",
    "graphopt verify model.onnx model.gopt --input x=photo.npy",
)


def command(
    model: options.Model,
    artifact: Annotated[
        Path | None,
        typer.Argument(
            metavar="[ARTIFACT]",
            parser=options.path,
            help="What was compiled from MODEL; default: compile it now, pass by pass.",
        ),
    ] = None,
    samples: Annotated[int, typer.Option("--samples", metavar="N", min=1, help="Random inputs to try.")] = 1,
    inputs: options.Inputs = None,
    target: options.Target = "llvm",
    shapes: options.Shapes = None,
    passes: options.Passes = None,
    no_fallback: options.NoFallback = False,
    threads: options.Threads = None,
    seed: options.Seed = 0,
) -> Report:
    """Compare a compiled model with ONNX Runtime, which runs the original without optimizations."""
    with progress("reading the model") as say:
        from graphopt.artifact import open_artifact
        from graphopt.cli import feeds as _feeds
        from graphopt.frontend.load import load
        from graphopt.pipeline.verification import given_shapes
        from graphopt.report import differences as reporting
        from graphopt.verify.judge import judge

        given = _feeds.given(inputs or [])
        fixed = {**given_shapes(model, given), **(options.parse_shapes(shapes) or {})}
        program = None if artifact is None else open_artifact(artifact)
        if program is not None and not fixed:
            fixed = _open_shapes(model, program)
        loaded = load(model, shapes=fixed)
        if program is not None:
            _require_same_inputs(loaded.model, model, program, artifact)
        checked: list[str] = []
        if program is None:
            from graphopt.compiler import compile_model

            say("compiling, and comparing after every pass")
            compiled = compile_model(
                model,
                shapes=fixed,
                target=target,
                passes=passes,
                verify="each",
                fallback=not no_fallback,
                seed=seed,
                inputs=given,
            )
            checked = [step.spelling for step in compiled.pipeline.steps if step.modified]
            program = compiled.artifact
        say("comparing with ONNX Runtime")
        session = program.session(threads=threads)
        compared, notes = [], []
        for sample in range(samples):
            judged = judge(loaded.original, loaded.model, seed + sample, given)
            feeds = _batches(dict(judged.feeds), program.program.micro_batches)
            compared += reporting.differences(judged, session.run(feeds))
            notes += judged.notes
    wrong = [difference for difference in compared if difference.problem]
    document = {
        "model": model,
        "artifact": None if artifact is None else str(artifact),
        "equal": not wrong,
        "passes": checked,
        "outputs": reporting.document(compared),
        "notes": notes,
    }
    blocks: list[Block] = [reporting.table(compared)]
    if checked:
        blocks.append(f"Every pass kept the outputs: {', '.join(checked)}")
    blocks += [f"note: {note}" for note in dict.fromkeys(notes)]
    verdict = f"{len(wrong)} of {len(compared)} outputs differ" if wrong else "the program agrees with ONNX Runtime"
    blocks.append(f"{model}: {verdict}")
    return Report(document, blocks, failed=bool(wrong))


def _require_same_inputs(loaded: ir.Model, model: str, artifact: Artifact, path: Path | None) -> None:
    wanted = {str(value.name) for value in loaded.graph.inputs}
    given = {port.name for port in artifact.program.inputs}
    if wanted != given:
        raise GraphoptError(
            f"{path} was compiled from another model: its inputs are {', '.join(sorted(given)) or 'none'}, "
            f"those of {model} {', '.join(sorted(wanted)) or 'none'}; name the model that it was compiled from"
        )


def _open_shapes(model: str, artifact: Artifact) -> dict[str, tuple[int, ...]]:
    """The sizes of open dimensions of the model that the artifact was compiled for."""
    import numpy as np

    from graphopt.pipeline.verification import given_shapes

    ports = {port.name: port.shape for port in artifact.program.inputs if port.shape is not None}
    return given_shapes(model, {name: np.broadcast_to(np.zeros(()), shape) for name, shape in ports.items()})


def _batches(feeds: dict[str, Any], count: int) -> dict[str, Any]:
    if count > 1:
        raise GraphoptError("the artifact takes several micro-batches; verify one that was compiled without them")
    return feeds
