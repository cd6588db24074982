"""`graphopt compress`: a model in a small file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from graphopt.cli import options as options
from graphopt.cli import quality as quality
from graphopt.cli.progress import progress
from graphopt.errors import GraphoptError
from graphopt.report.document import Report

EXAMPLES = (
    "graphopt compress pruned.onnx -o pruned.gopz",
    "graphopt compress pruned.onnx -o pruned.gopz --bits 5",
    "graphopt compress pruned.onnx -o pruned.gopz --bits 5 --eval digits.npz --max-kl 0.01",
)


def command(
    model: options.Model,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="OUT.gopz",
            parser=options.file,
            help="Where to write, over a compressed model that is there; default NAME.gopz in this folder.",
        ),
    ] = None,
    bits: Annotated[
        int | None,
        typer.Option(
            "--bits",
            metavar="N",
            min=5,
            max=8,
            help="Share weights: those of each MatMul, Gemm and Conv become 2^N - 1 values and zero (5 to 8). "
            "Without it nothing is lost.",
        ),
    ] = None,
    evaluate: quality.Eval = None,
    eval_output: quality.EvalOutput = None,
    max_kl: quality.MaxKl = None,
    max_flip: quality.MaxFlip = None,
    svg: quality.Svg = None,
) -> Report:
    """Store a model in few bytes; every command that takes a model takes the file, `graphopt decompress` undoes it.

    Each tensor is stored in its smallest form: dense, a bitmap or compressed columns; as it is or as codes; packed or
    as Huffman codes.
    """
    file = output if output is not None else Path(default_name(model))
    options.check_output(file, "-o", _is_compressed)
    options.check_apart(file, "-o", svg, "is what --svg names too")
    if bits is not None:  # without them nothing is lost
        options.check_apart(file, "-o", Path(model), "is the model itself, whose exact weights would be lost")
    evaluation = quality.asked(evaluate, eval_output, max_kl, max_flip, svg)
    judgement = None
    with progress("reading the model") as say:
        from graphopt.frontend.load import original, read
        from graphopt.report.weights import compression as reporting
        from graphopt.storage.model import share_weights, write

        source, folder = read(model)
        errors = None if bits is None else share_weights(source, folder, bits, say)
        draft = file if evaluation is None else file.with_name(f".{file.name}.draft")
        try:
            compressed = write(source, folder, draft, errors, bits, say)
            if evaluation is not None:  # by what the file gives back
                judgement = quality.judge(evaluation, original(model), original(draft), progress=say)
                if svg is not None:
                    judgement.draw(svg, model, "compressed")
                draft.replace(file)
        except OSError as error:
            raise GraphoptError(f"-o {file} cannot be written: {error.strerror or error}; name another file") from error
        finally:
            if evaluation is not None:
                draft.unlink(missing_ok=True)
    exact = [layer.node for layer in compressed.layers if errors and layer.error is None]
    notes = [f"note: the weights of {', '.join(exact)} are not finite and were not shared"] if exact else []
    document = {"model": model, "file": str(file), "bits": bits, **reporting.document(compressed)}
    scores = [] if judgement is None else judgement.blocks("compressed")
    if judgement is not None:
        document["quality"] = judgement.document()
    lossless = (
        "every tensor comes back bit by bit" if bits is None else f"weights are shared, {2**bits - 1} values each"
    )
    return Report(document, [*reporting.blocks(compressed), *scores, *notes, f"Wrote {file}: {lossless}."])


def _is_compressed(beginning: bytes) -> bool:
    from graphopt.storage.archive import is_compressed

    return is_compressed(beginning)


def default_name(model: str) -> str:
    """`resnet50.gopz` for `models/resnet50.onnx` and for `zoo:light/resnet50`."""
    last = model.removeprefix("zoo:").rstrip("/").rpartition("/")[2]
    stem = last.removesuffix(".onnx").removesuffix(options.COMPRESSED)
    return (re.sub(r"[^\w.+-]", "_", stem).lstrip(".") or "model") + options.COMPRESSED
