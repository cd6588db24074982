"""`graphopt run`: execute an artifact, without loading the compiler."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from graphopt.cli import options as options
from graphopt.cli.progress import progress
from graphopt.errors import GraphoptError
from graphopt.report.document import Report

EXAMPLES = (
    "graphopt run model.gopt --input x=x.npy --output results",
    "graphopt run model.gopt --random --threads 2",
)


def command(
    artifact: options.ArtifactPath,
    inputs: options.Inputs = None,
    random: Annotated[bool, typer.Option("--random", help="Random numbers for the inputs that are not given.")] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="DIR",
            parser=options.path,
            help="Write DIR/NAME.npy for every output, DIR/NAME.json for maps; a / in a name becomes %2F.",
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
        typer.Option(
            "--timeout",
            metavar="SECONDS",
            min=1.0,
            max=86400.0,
            help="Seconds after which a rank that is not heard of counts as lost.",
        ),
    ] = 60.0,
) -> Report:
    """Run an artifact once and show, or write, its outputs."""
    if output is not None and output.exists() and not output.is_dir():
        raise GraphoptError(f"--output {output} is a file; name a folder")
    import numpy as np

    from graphopt.artifact import open_artifact
    from graphopt.cli import feeds as _feeds
    from graphopt.report import outputs as reporting
    from graphopt.runtime import files

    opened = open_artifact(artifact)
    program = opened.program
    feeds = _feeds.read(inputs or [], program.inputs, opened.constants)
    missing = [port for port in program.inputs if port.name not in feeds]
    if missing and not random:
        name = missing[0].name
        raise GraphoptError(f"input {name!r} is missing; give --input {name}=FILE.npy or --random")
    feeds |= _feeds.random(missing, program.micro_batches, seed)
    if ranks is None:
        session = opened.session(threads=threads)
        start = time.perf_counter()
        outputs = session.run(feeds)
        seconds = time.perf_counter() - start
        written = {} if output is None else files.write(output, outputs)
        where = f"{session.threads} threads" if session.device is None else session.device.name
        how = f"one run took {seconds * 1e3:.2f} ms on {where}"
    else:
        from graphopt.distributed.launch import launch

        start = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="graphopt-") as scratch, progress(f"running on {ranks} ranks"):
            paths = launch(artifact, ranks, feeds, output or Path(scratch), timeout, threads)
            # Copied out of the files, which may be deleted with the temporary folder.
            outputs = {
                name: json.loads(path.read_text()) if path.suffix == ".json" else np.array(files.read(path, name))
                for name, path in paths.items()
            }
        seconds = time.perf_counter() - start
        written = {} if output is None else paths
        how = f"{ranks} {'rank' if ranks == 1 else 'ranks'} took {seconds:.2f} s, the start of their processes included"
    document = {
        "artifact": str(artifact),
        "ranks": ranks,
        "seconds": seconds,
        "outputs": reporting.document(outputs, written),
    }
    return Report(document, [reporting.table(outputs, written), how])
