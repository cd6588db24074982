"""`graphopt decompress`: the ONNX model of a compressed file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graphopt.cli import options as options
from graphopt.cli.progress import progress
from graphopt.errors import GraphoptError
from graphopt.report.document import Report

EXAMPLES = ("graphopt decompress pruned.gopz -o pruned.onnx",)


def command(
    file: Annotated[Path, typer.Argument(metavar="FILE", parser=options.path, help="What `graphopt compress` wrote.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="MODEL.onnx",
            parser=options.file,
            help="Where to write; no file is replaced. Default NAME.onnx in this folder.",
        ),
    ] = None,
) -> Report:
    """Write a compressed model as ONNX again, with the tensors that were compressed, bit by bit."""
    output = output if output is not None else Path(f"{file.name.removesuffix(options.COMPRESSED)}.onnx")
    beside = output.with_name(f"{output.name}.data")
    for each in (output, beside):
        options.check_output(each, "-o", lambda _: False)
    with progress("decoding the tensors"):
        from graphopt.report.units import nbytes
        from graphopt.storage import restore

        if file.is_file() and not restore.is_compressed_file(file):
            raise GraphoptError(f"{file} is no compressed model; name what graphopt compress wrote")
        try:
            written = restore.decompress(file, output)
        except OSError as error:
            raise GraphoptError(
                f"-o {output} cannot be written: {error.strerror or error}; name another file"
            ) from error
    sizes = [each.stat().st_size for each in written]
    document = {"file": str(file), "model": str(output), "bytes": sum(sizes), "data": None}
    text = f"Wrote {output}: {nbytes(sizes[0])}"
    if len(written) > 1:
        document["data"] = str(beside)
        text += f", and its weights in {beside}: {nbytes(sizes[1])}"
    return Report(document, [f"{text}."])
