"""`graphopt bisect`: the first dump whose outputs differ."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from graphopt.cli import options as options
from graphopt.cli.progress import progress
from graphopt.report.document import Block, Facts, Report

EXAMPLES = ("graphopt compile model.onnx --dump dumps && graphopt bisect dumps",)


def command(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", parser=options.path, help="Where `graphopt compile --dump DIR` wrote.")
    ],
    seed: options.Seed = 0,
) -> Report:
    """Run every dump of a compilation in ONNX Runtime and find the first pass, and node, that changed the result."""
    with progress("running the dumps"):
        from graphopt.pipeline.bisect import bisect

        verdict = bisect(directory, seed)
    blocks: list[Block] = [verdict.sentence]
    if not verdict.ok:
        pairs = (
            ("pass", verdict.spelling),
            ("dump", verdict.dump),
            ("node", verdict.node),
            ("from", verdict.origin),
            ("value", verdict.value),
            ("suspects", ", ".join(verdict.suspects)),
        )
        blocks.append(Facts(tuple((name, text) for name, text in pairs if text)))
    return Report(asdict(verdict), blocks, failed=not verdict.ok)
