"""`graphopt verify`: a compiled model against ONNX Runtime on the model as the user gave it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from graphopt.cli import _options as options
from graphopt.cli._progress import progress
from graphopt.errors import GraphoptError
from graphopt.report.document import Block, Report

EXAMPLES = ("graphopt verify model.onnx", "graphopt verify model.onnx model.gopt --samples 5")


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
    target: options.Target = "llvm",
    shapes: options.Shapes = None,
    passes: options.Passes = None,
    no_fallback: options.NoFallback = False,
    threads: options.Threads = None,
    seed: options.Seed = 0,
) -> Report:
    """Compare a compiled model with ONNX Runtime, which runs the original without optimizations."""
    with progress("reading the model") as say:
        import graphopt
        from graphopt.report import differences as reporting
        from graphopt.verify import random_inputs, run_onnxruntime

        fixed = options.parse_shapes(shapes)
        loaded = graphopt.load(model, shapes=fixed).model
        checked: list[str] = []
        if artifact is None:
            from graphopt.compiler import compile_model

            say("compiling, and comparing after every pass")
            compiled = compile_model(
                loaded, target=target, passes=passes, verify="each", fallback=not no_fallback, seed=seed
            )
            checked = [step.spelling for step in compiled.pipeline.steps if step.modified]
            program = compiled.artifact
        else:
            program = graphopt.open(artifact)
        say("comparing with ONNX Runtime")
        session = program.session(threads=threads)
        found = []
        for sample in range(samples):
            feeds = random_inputs(loaded, seed + sample)
            expected = run_onnxruntime(_source(model, loaded), feeds)
            found += reporting.differences(expected, session.run(_batches(feeds, program.program.micro_batches)))
    wrong = [each for each in found if each.problem]
    document = {
        "model": model,
        "artifact": None if artifact is None else str(artifact),
        "equal": not wrong,
        "passes": checked,
        "outputs": reporting.document(found),
    }
    blocks: list[Block] = [reporting.table(found)]
    if checked:
        blocks.append(f"Every pass kept the outputs: {', '.join(checked)}")
    verdict = f"{len(wrong)} of {len(found)} outputs differ" if wrong else "the program agrees with ONNX Runtime"
    blocks.append(f"{model}: {verdict}")
    return Report(document, blocks, failed=bool(wrong))


def _source(model: str, loaded: Any) -> Any:
    """The file itself where there is one, so that what loading changed is checked too."""
    if model.startswith("zoo:"):
        from graphopt import models

        return models.build(model.removeprefix("zoo:"))
    path = Path(model)
    return path if path.is_file() else loaded


def _batches(feeds: dict[str, Any], count: int) -> dict[str, Any]:
    if count > 1:
        raise GraphoptError("the artifact takes several micro-batches; verify one that was compiled without them")
    return feeds
