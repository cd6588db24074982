"""Random small models over all operators that are native, compiled and held against ONNX Runtime.

    python tests/random_models.py [--seed 0] [--count 200] [--seconds 60] [--keep DIR]

A model comes from a grammar (`random_families.py`, `random_moves.py`, `random_control.py`): any opset from 7 to 22, all
types, control flow, special values, shared weights, several outputs. Each is compiled and run twice in a forked child
with a time limit, and judged as `--verify ends` does. What ONNX Runtime itself cannot run does not count; a refusal in
a sentence is counted; anything else that is not right is printed with its seed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parent.parent))

import graphopt
from graphopt.errors import GraphoptError, VerificationError
from graphopt.verify.judge import Judge
from graphopt.verify.oracle import run_onnxruntime
from tests.helpers.random_control import random_graph

RIGHT, SKIPPED, REFUSED = "right", "skipped", "refused"
LONGEST = 1000
"""Characters that a sentence may have."""


def outcome(seed: int, keep: Path | None = None) -> str:
    """ "right", "skipped" (ONNX Runtime has no result), "refused: SENTENCE", or what is wrong."""
    graph = random_graph(seed)
    model, feeds = graph.model(), graph.feeds
    if not model.graph.output:
        return SKIPPED
    try:
        expected = run_onnxruntime(model, feeds)
    except VerificationError:
        return SKIPPED
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        (keep / "model.onnx").write_bytes(model.SerializeToString())
        np.savez(keep / "inputs.npz", **feeds)
    return compiled(model, feeds, expected)


def compiled(model: Any, feeds: dict[str, Any], expected: dict[str, Any]) -> str:
    """What two runs of the compiled model give."""
    try:
        session = graphopt.compile(model).session()
    except GraphoptError as error:
        text = str(error)
        fault = "the program is not valid" in text  # a check of what the compiler made, not of the model
        sentence = "\n" not in text and "Traceback" not in text and len(text.split()) > 3 and len(text) < LONGEST
        return f"{REFUSED}: {text}" if sentence and not fault else f"refused without a reason: {text!r}"
    judge = Judge(model, feeds, expected)
    for run in ("first", "second"):
        found = judge.mismatches(session.run(feeds))
        if found:
            return f"the {run} run is wrong: {found[0].message}"
    return RIGHT


def apart(seed: int, seconds: int, keep: Path | None = None) -> str:
    """`outcome` in a forked child, which may crash or hang."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(seconds)
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        try:
            text = outcome(seed, keep)
        except BaseException as error:  # whatever happens is a result
            text = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
        os.write(writer, text.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        text = pipe.read().decode()
    ended = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(ended):
        number = os.WTERMSIG(ended)
        return f"took more than {seconds} s" if number == signal.SIGALRM else f"crashed with signal {number}"
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the first model")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seconds", type=int, default=60, help="that one model may take")
    parser.add_argument("--keep", type=Path, help="folder for models that fail, and their inputs")
    options = parser.parse_args()
    os.environ.setdefault("GRAPHOPT_COSTS", "roofline")
    warnings.filterwarnings("ignore")

    counts = {RIGHT: 0, SKIPPED: 0, REFUSED: 0, "failed": 0}
    for seed in range(options.seed, options.seed + options.count):
        folder = options.keep / str(seed) if options.keep else None
        why = apart(seed, options.seconds, folder)
        kind = next((k for k in (RIGHT, SKIPPED, REFUSED) if why == k or why.startswith(f"{k}: ")), "failed")
        counts[kind] += 1
        if kind in (REFUSED, "failed"):
            sys.stdout.write(f"model {seed}: {why}\n")
            sys.stdout.flush()
        elif folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
    last = options.seed + options.count - 1
    told = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    sys.stdout.write(f"models of seed {options.seed} to {last} ({options.count}): {told}\n")
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
