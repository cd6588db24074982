"""`graphopt compile`: compile a model into an artifact."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from graphopt.cli import options as options
from graphopt.cli import quality as quality
from graphopt.cli.progress import progress
from graphopt.errors import GraphoptError
from graphopt.modes import Precision, VerifyMode
from graphopt.report.document import Report

EXAMPLES = (
    "graphopt compile model.onnx -o model.gopt --shapes x:1x3x224x224 --verify ends",
    "graphopt compile model.onnx --verify ends --input x=photo.npy",
    "graphopt compile zoo:resnet18 --explain --threads 2",
    "graphopt compile zoo:resnet50 --target cuda --level a100 --explain",
    "graphopt compile zoo:resnet18 -o again.gopt --costs resnet18.gopt",
    "graphopt compile pruned.onnx --lossy-energy 0.99 --eval digits.npz --max-flip 0.01",
)

SUFFIX = ".gopt"
_PHASES = {
    "load": "reading the model",
    "passes": "rewriting the graph",
    "lower": "lowering and planning memory",
    "build": "generating code",
    "verify": "comparing with ONNX Runtime",
}


_VERIFIED = {
    VerifyMode.OFF: "no (--verify ends compares the program with ONNX Runtime)",
    VerifyMode.PASSES: "every pass agrees with ONNX Runtime; the program was not run",
    VerifyMode.ENDS: "the program agrees with ONNX Runtime",
    VerifyMode.EACH: "every pass and the program agree with ONNX Runtime",
}


def command(
    model: options.Model,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="OUT.gopt",
            parser=options.file,
            help="Where to write, over an artifact that is there; default NAME.gopt in this folder.",
        ),
    ] = None,
    target: options.Target = "llvm",
    level: options.Level = None,
    shapes: options.Shapes = None,
    passes: options.Passes = None,
    precision: Annotated[
        Precision,
        typer.Option("--precision", help="Precision of products and what lies between; sums and softmax stay in fp32."),
    ] = Precision.FP32,
    verify: Annotated[
        VerifyMode,
        typer.Option("--verify", help="Compare with ONNX Runtime: the ends, the passes (needs no device), or each."),
    ] = VerifyMode.OFF,
    inputs: options.Inputs = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Write the artifact even if --verify finds that it computes something else.")
    ] = False,
    dump: Annotated[
        Path | None,
        typer.Option("--dump", metavar="DIR", parser=options.path, help="Write the model after every pass there."),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show every choice with its cost, and every refusal with its reason.")
    ] = False,
    ranks: options.Ranks = 1,
    micro_batches: Annotated[
        int, typer.Option("--micro-batches", metavar="M", min=1, help="A run takes M times the batch, in M pieces.")
    ] = 1,
    memory_budget: options.MemoryBudget = None,
    no_fallback: options.NoFallback = False,
    costs: options.Costs = None,
    threads: options.Threads = None,
    lossy_energy: Annotated[
        float | None,
        typer.Option(
            "--lossy-energy",
            metavar="SHARE",
            help="Drop weights outside of the blocks that keep this share of a sparse layer's squared weights.",
        ),
    ] = None,
    keep_denormals: Annotated[
        bool, typer.Option("--keep-denormals", help="Do not take weights below 2^-126 as zero.")
    ] = False,
    evaluate: quality.Eval = None,
    eval_output: quality.EvalOutput = None,
    max_kl: quality.MaxKl = None,
    max_flip: quality.MaxFlip = None,
    svg: quality.Svg = None,
    no_cache: options.NoCache = False,
    seed: options.Seed = 0,
) -> Report:
    """Compile a model into an artifact that `graphopt run` executes."""
    file = output if output is not None else Path(default_name(model))
    options.check_output(file, "-o", is_artifact)
    options.check_apart(file, "-o", svg, "is what --svg names too")
    if inputs and verify is VerifyMode.OFF:
        raise GraphoptError("--input is for verification; give --verify ends too, or leave it out")
    if dump is not None and dump.exists() and not dump.is_dir():
        raise GraphoptError(f"--dump {dump} is a file; name a folder")
    evaluation = quality.asked(evaluate, eval_output, max_kl, max_flip, svg)
    if evaluation is not None and precision is Precision.BF16:
        raise GraphoptError("--eval runs the rewritten model in ONNX Runtime, which computes no bfloat16; leave it out")
    judgement = None
    with progress("starting") as say:
        from graphopt.cli import feeds
        from graphopt.compiler import compile_model
        from graphopt.report import compilation as reporting

        with _no_empty_folders(dump):
            compilation = compile_model(
                model,
                target=target,
                level=level,
                shapes=options.parse_shapes(shapes),
                passes=passes,
                precision=precision.value,
                verify=verify.value,
                dump=dump,
                ranks=ranks,
                micro_batches=micro_batches,
                memory_budget=memory_budget,
                fallback=not no_fallback,
                costs=costs,
                threads=threads,
                cache=not no_cache,
                lossy_energy=lossy_energy,
                keep_denormals=keep_denormals,
                seed=seed,
                inputs=feeds.given(inputs or []),
                keep=keep,
                progress=lambda phase: say(_PHASES.get(phase, phase)),
            )
        if evaluation is not None:
            from graphopt.frontend.load import original

            judgement = quality.judge(evaluation, original(model), compilation.pipeline.model, progress=say)
            if svg is not None:
                judgement.draw(svg, model, "rewritten")
        say("writing the artifact")
        compilation.artifact.save(file)
    verdict = f"NO: {compilation.failure}" if compilation.failure else _VERIFIED[verify]
    blocks = reporting.summary(compilation, model, file, verdict)
    document = dict(reporting.document(compilation, file))
    if lossy_energy is not None and not explain:
        blocks += reporting.dropped(compilation)
    if judgement is not None:
        blocks += judgement.blocks("rewritten")
        document["quality"] = judgement.document()
    if explain:
        blocks += reporting.explanation(compilation)
    return Report(document, blocks, failed=bool(compilation.failure))


def is_artifact(beginning: bytes) -> bool:
    """Whether a file with this beginning is an artifact: its first member is the manifest."""
    return beginning.startswith(b"PK\3\4") and beginning[30:].startswith(b"manifest.json")


@contextlib.contextmanager
def _no_empty_folders(folder: Path | None) -> Iterator[None]:
    """If the body fails, remove `folder` and its parents, as far as the body created them and they are empty."""
    absent = [] if folder is None else [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for parent in absent:
                parent.rmdir()
        raise


def default_name(model: str) -> str:
    """`resnet50.gopt` for `models/resnet50.onnx` and for `zoo:light/resnet50`."""
    last = model.removeprefix("zoo:").rstrip("/").rpartition("/")[2]
    stem = last.removesuffix(".onnx").removesuffix(options.COMPRESSED)
    return (re.sub(r"[^\w.+-]", "_", stem).lstrip(".") or "model") + SUFFIX
