"""`graphopt run`: an artifact computes. Nothing of the compiler is loaded."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from graphopt.cli import _options as options
from graphopt.errors import GraphoptError
from graphopt.report.document import Report

EXAMPLES = (
    "graphopt run model.gopt --input x=x.npy --output results",
    "graphopt run model.gopt --random --threads 2",
)


def command(
    artifact: options.ArtifactPath,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="NAME=FILE.npy", help="An input, as numpy.save wrote it; repeat for others."),
    ] = None,
    random: Annotated[bool, typer.Option("--random", help="Random numbers for the inputs that are not given.")] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="DIR",
            help="Write DIR/NAME.npy for every output; what is no letter, digit or one of _.+- in a name becomes _.",
        ),
    ] = None,
    ranks: Annotated[
        int | None,
        typer.Option("--ranks", metavar="N", min=1, help="One process per stage; default all stages in this process."),
    ] = None,
    threads: options.Threads = None,
    seed: options.Seed = 0,
    timeout: Annotated[
        float,
        typer.Option("--timeout", min=1.0, help="Seconds after which a rank that is not heard of counts as lost."),
    ] = 60.0,
) -> Report:
    """Run an artifact once and show, or write, its outputs."""
    if output is not None and output.exists() and not output.is_dir():
        raise GraphoptError(f"--output {output} is a file; name a folder")
    import graphopt
    from graphopt.cli import _feeds
    from graphopt.report import outputs as reporting

    opened = graphopt.open(artifact)
    program = opened.program
    if output is not None:
        _feeds.file_names([port.name for port in program.outputs])
    feeds = _feeds.read(inputs or [], program.inputs, program.micro_batches)
    missing = [port for port in program.inputs if port.name not in feeds]
    if missing and not random:
        raise GraphoptError(
            f"input {missing[0].name!r} is missing; give --input {missing[0].name}=FILE.npy or --random"
        )
    feeds |= _feeds.random(missing, program.micro_batches, seed)
    if ranks is None:
        session = opened.session(threads=threads)
        start = time.perf_counter()
        outputs = session.run(feeds)
        used, seconds = session.threads, time.perf_counter() - start
    else:
        raise GraphoptError("--ranks is not here yet")
    files = {} if output is None else _feeds.write(outputs, output)
    document = {
        "artifact": str(artifact),
        "ranks": ranks or 1,
        "threads": used,
        "seconds": seconds,
        "outputs": reporting.document(outputs, files),
    }
    where = "in this process" if ranks is None else f"on {ranks} ranks"
    return Report(
        document, [reporting.table(outputs, files), f"one run of {seconds * 1e3:.2f} ms {where}, {used} threads"]
    )
