"""The process that benchmarks one model, so that a crash costs one row and not the table.

python -m graphopt.bench.worker model SOURCE OPTIONS                  lines of JSON: {"say": ...}, {"result": ...}
python -m graphopt.bench.worker training SOURCE OPTIONS               the same, of a training step
python -m graphopt.bench.worker peak SIDE FILE THREADS FOLDER         a number of bytes
python -m graphopt.bench.worker training-peak SIDE SOURCE FILE THREADS
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from graphopt.errors import GraphoptError


def main(arguments: list[str]) -> int:
    """Run one job; returns the exit code."""
    # Libraries write to stdout, some from C: redirect them to stderr; the answer gets a descriptor of its own.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            jobs = {"model": _model, "training": _training, "peak": _peak, "training-peak": _training_peak}
            return jobs[arguments[0]](arguments[1:], out)


def _model(arguments: list[str], out: TextIO) -> int:
    from graphopt.bench.one import measure

    return _measured(measure, arguments, out)


def _training(arguments: list[str], out: TextIO) -> int:
    from graphopt.bench.training.one import measure

    return _measured(measure, arguments, out)


def _measured(measure: Callable[..., dict[str, Any]], arguments: list[str], out: TextIO) -> int:
    from graphopt.bench.sides import Settings

    source, text = arguments
    options = json.loads(text)  # the other arguments of `measure`, by name
    options["settings"] = Settings(**options["settings"])
    if file_and_names := options.pop("inputs", None):
        file, *names = file_and_names
        with np.load(file, allow_pickle=False) as archive:
            options["inputs"] = {name: archive[f"arr_{index}"] for index, name in enumerate(names)}

    def tell(**message: Any) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    try:
        tell(result=measure(source, say=lambda text: tell(say=text), **options))
    except GraphoptError as error:
        tell(result={"model": source, "error": str(error)})
    except Exception as error:  # one model's bug must not look like another's, nor end the table
        tell(result={"model": source, "error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"})
    return 0


def _peak(arguments: list[str], out: TextIO) -> int:
    from graphopt.bench import peak

    side, file, threads, folder = arguments
    return _bytes(peak.of_this_process(side, Path(file), int(threads), peak.kept(Path(folder))), out)


def _training_peak(arguments: list[str], out: TextIO) -> int:
    from graphopt.bench.training.one import peak_of_this_process

    side, source, file, threads = arguments
    return _bytes(peak_of_this_process(side, source, Path(file), int(threads)), out)


def _bytes(nbytes: int | None, out: TextIO) -> int:
    if nbytes is None:
        return 1
    out.write(str(nbytes))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
