"""`graphopt demo`: the complete workflow on real models, each step with one line of its result."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from graphopt.cli.progress import progress
from graphopt.errors import GraphoptError
from graphopt.report.document import Report
from graphopt.report.units import nbytes

if TYPE_CHECKING:
    from graphopt.compiler import Compilation

EXAMPLES = ("graphopt demo", "graphopt demo --json")

DIGITS = "zoo:lenet-digits"
MODEL = "zoo:seeded/squeezenet"
_RUN_SECONDS = 120
_BENCH_RUNS = 60


class _Step(Protocol):
    def __call__(self, folder: Path, threads: int) -> tuple[str, dict[str, Any]]:
        """The line with the step's result, and its numbers."""


def command(
    context: typer.Context,
    threads: Annotated[int, typer.Option("--threads", metavar="N", min=1, help="Threads of every step.")] = 2,
) -> Report:
    """Compile two models, check them against ONNX Runtime, time one beside it, and run it on two ranks.

    Everything happens in a temporary folder that is removed at the end.
    """
    shown = not context.obj.json
    steps: dict[str, Any] = {}
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="graphopt-demo-") as name:
        for number, (key, title, step) in enumerate(STEPS, 1):
            start = time.perf_counter()
            with progress(f"{title} ..."):
                line, numbers = step(Path(name), threads)
            took = time.perf_counter() - start
            steps[key] = {**numbers, "seconds": took}
            text = f"{number}. {title} ({took:.1f} s)\n   {line}"
            if shown:  # print at once: all steps take a minute
                context.obj.print(text)
    total = time.perf_counter() - started
    return Report({"steps": steps, "seconds": total}, [f"All {len(STEPS)} steps passed in {total:.0f} s."])


def digits(folder: Path, threads: int) -> tuple[str, dict[str, Any]]:
    """The trained LeNet on the handwritten digits of its test set."""
    from graphopt.bench.peers.runtimes import OnnxRuntime
    from graphopt.bench.sides import Settings
    from graphopt.compiler import compile_model
    from graphopt.models import build
    from graphopt.models import digits as load_digits

    images, labels = load_digits()
    ours = compile_model(DIGITS, verify="ends").artifact.session(threads=threads).run
    theirs = OnnxRuntime().open(build("lenet-digits"), Settings(threads)).run
    guesses, others = ([int(run({"image": i[None]})["logits"].argmax()) for i in images] for run in (ours, theirs))
    right = sum(guess == label for guess, label in zip(guesses, labels.tolist(), strict=True))
    same = sum(guess == other for guess, other in zip(guesses, others, strict=True))
    line = (
        f"it reads {right} of {len(labels)} handwritten digits right ({right / len(labels):.1%}), "
        f"and {same} of {len(labels)} as ONNX Runtime does"
    )
    return line, {"images": len(labels), "right": right, "accuracy": right / len(labels), "same": same}


def squeezenet(folder: Path, threads: int) -> tuple[str, dict[str, Any]]:
    """A real architecture, verified after every pass."""
    from graphopt.compiler import compile_model
    from graphopt.report.compilation import algorithms, memory, ratio

    compiled = compile_model(MODEL, verify="each")
    file = compiled.artifact.save(_artifact(folder))
    used = memory(compiled.artifact)
    chosen = dict(algorithms(compiled.artifact))
    line = (
        f"{_native(compiled)} nodes native, {len(compiled.fallbacks)} in ONNX Runtime; convolutions: "
        f"{', '.join(f'{count} {name}' for name, count in chosen.items())}; arena {nbytes(used['arena'])}, "
        f"{ratio(used)} its lower bound; every pass and the program agree with ONNX Runtime"
    )
    return line, {
        "bytes": file.stat().st_size,
        "algorithms": chosen,
        "memory": used,
        "fallbacks": len(compiled.fallbacks),
    }


def shell(folder: Path, threads: int) -> tuple[str, dict[str, Any]]:
    """`graphopt run` in a fresh process."""
    results = folder / "one"
    # -P: a folder called graphopt where the user stands must not be taken for this package.
    arguments = [
        sys.executable,
        "-P",
        "-m",
        "graphopt",
        "run",
        str(_artifact(folder)),
        "--random",
        "--threads",
        str(threads),
    ]
    start = time.perf_counter()
    done = subprocess.run(
        [*arguments, "--output", str(results)], capture_output=True, text=True, timeout=_RUN_SECONDS, check=False
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        raise GraphoptError(f"`graphopt run` failed in the demo: {done.stderr.strip()}")
    line = f"from the shell to the result in {seconds:.2f} s, without torch or the compiler in the process"
    return line, {"shell_seconds": seconds}


def speed(folder: Path, threads: int) -> tuple[str, dict[str, Any]]:
    """Time interleaved with ONNX Runtime."""
    from graphopt.bench import suite

    document = suite.run([MODEL], threads, _BENCH_RUNS)
    row = document["models"][0]
    if row["error"] is not None:
        raise GraphoptError(f"the benchmark of the demo failed: {row['error']}")
    ours, theirs = row["sides"]["graphopt"]["value"], row["sides"]["onnxruntime"]["value"]
    ratio = row["ratios"]["onnxruntime"]
    line = (
        f"median {ours * 1e3:.2f} ms, ONNX Runtime {theirs * 1e3:.2f} ms: {ratio['value']:.2f}x its time "
        f"(95 % interval {ratio['low']:.2f} to {ratio['high']:.2f}), {threads} threads, interleaved in one process"
    )
    return line, {"graphopt": ours, "onnxruntime": theirs, "ratio": ratio}


def two_ranks(folder: Path, threads: int) -> tuple[str, dict[str, Any]]:
    """The same model in two stages, one process each."""
    import numpy as np

    from graphopt.artifact import open_artifact
    from graphopt.cli.feeds import random
    from graphopt.compiler import compile_model
    from graphopt.distributed.launch import launch
    from graphopt.runtime import files

    program = open_artifact(_artifact(folder)).program
    feeds = random(program.inputs, 1, 0)
    file = compile_model(MODEL, ranks=2).artifact.save(folder / "two.gopt")
    paths = launch(file, 2, feeds, folder / "two", threads=max(1, threads // 2))
    results = {port.name: np.load(folder / "one" / files.file_name(port.name)) for port in program.outputs}
    largest = max(float(np.abs(np.load(path) - results[name]).max()) for name, path in paths.items())
    same = all(np.load(path).tobytes() == results[name].tobytes() for name, path in paths.items())
    verdict = "bit for bit the result of one process" if same else f"within {largest:.2g} of the result of one process"
    return f"two processes over torch.distributed give {verdict}", {"bit_equal": same, "largest_difference": largest}


STEPS: tuple[tuple[str, str, _Step], ...] = (
    ("digits", "A trained LeNet reads digits", digits),
    ("compile", "SqueezeNet becomes a program", squeezenet),
    ("run", "The program runs by itself", shell),
    ("bench", "It is timed beside ONNX Runtime", speed),
    ("ranks", "Two ranks share the work", two_ranks),
)
"""Key in `--json`, title, function of the step."""


def _artifact(folder: Path) -> Path:
    return folder / "squeezenet.gopt"


def _native(compiled: Compilation) -> int:
    return len(compiled.pipeline.model.graph) - len(compiled.fallbacks)
