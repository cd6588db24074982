"""The benchmark of one training step: compile, check against PyTorch, time side by side, measure memory."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.bench import intervals, peak, timing
from graphopt.bench.sides import Settings
from graphopt.bench.training import task as tasks
from graphopt.errors import GraphoptError

GRAPHOPT = "graphopt"
PEERS = ("torch", "torch-compile", "onnxruntime")
"""What a training step is timed beside; ONNX Runtime runs the step model with its state as inputs and outputs."""
DEFAULT = ("torch",)
_CHECKED = 3
"""Steps whose losses must agree before anything is timed."""
_TOLERANCE = 2e-3

Run = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def measure(
    source: str,
    settings: Settings,
    runs: int | None,
    peers: Sequence[str],
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Everything that the table shows of one training step, as JSON values.

    Args:
        source: `zoo:NAME` of a model that is built here.
        settings: threads and source of costs.
        runs: counted runs per side; None takes as many as fit.
        peers: names in `PEERS`. One that cannot run the step, or whose losses differ, has no time.

    Raises:
        GraphoptError: the step cannot be compiled or run.
    """
    import torch  # before TVM: the other order aborts the process

    torch.set_num_threads(settings.threads)
    from graphopt.compiler import compile_model
    from graphopt.report.compilation import memory

    task = tasks.of(source)
    say("building the step")
    step = task.step()
    feeds = tasks.feeds(step)
    say("compiling")
    start = time.perf_counter()
    compiled = compile_model(step.model, verify="off", costs=settings.costs, threads=settings.threads)
    seconds = time.perf_counter() - start
    with tempfile.TemporaryDirectory(prefix="graphopt-bench-") as name:
        folder = Path(name)
        file = compiled.artifact.save(folder / "step.gopt")
        size = file.stat().st_size
        opened: dict[str, Run] = {}
        failures: dict[str, str] = {}
        losses: dict[str, list[float]] = {}
        for side in (GRAPHOPT, *peers):
            say(f"checking {side}")
            try:
                run = _open(side, source, file, settings)
                losses[side] = [float(run(feeds)["loss"]) for _ in range(_CHECKED)]
            except Exception as error:  # a peer that cannot run the step is a row, whatever it raises
                if side == GRAPHOPT:
                    raise
                failures[side] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                continue
            if not np.allclose(losses[side], losses[GRAPHOPT], rtol=_TOLERANCE, atol=_TOLERANCE):
                failures[side] = f"its losses are {_shown(losses[side])}, and graphopt's {_shown(losses[GRAPHOPT])}"
                continue
            opened[side] = run
        say(f"timing {', '.join(opened)}")
        blocks = [timing.by_clock(lambda run=run: run(feeds)) for run in opened.values()]  # type: ignore[misc]
        timings = timing.interleave(blocks, runs)
        sides = {
            side: {**asdict(median), "runs": sum(len(one[index]) for one in timings.rounds), "sets": 1}
            for index, (side, median) in enumerate(zip(opened, intervals.medians(timings.rounds), strict=True))
        }
        ratios = {}
        for index, side in enumerate(opened):
            if index:
                estimate, deviation = intervals.ratio(timings.rounds, 0, index)
                ratios[side] = {**asdict(estimate), "log_deviation": deviation}
        opened.clear()
        blocks.clear()
        say("measuring memory")
        peak.keep(feeds, folder)
        for side, row in sides.items():
            row["peak_bytes"] = None if side == "torch-compile" else _peak(side, source, file, settings.threads)
            row |= {"compile_seconds": seconds if side == GRAPHOPT else None}
            row |= {"relative_error": None, "largest_error": None}
    artifact = compiled.artifact
    calls = [call for stage in artifact.program.stages for segment in stage.segments for call in _calls(segment)]
    return {
        "model": source,
        "compile_seconds": seconds,
        "native_nodes": len({node for call in calls for node in call.origin}),
        "fallback_nodes": len(compiled.fallbacks),
        "artifact_bytes": size,
        "memory": memory(artifact),
        "equal": GRAPHOPT in sides,
        "mismatch": None,
        "unstable": [],
        "notes": list(step.notes),
        "losses": losses,
        "sides": sides,
        "ratios": ratios,
        "failures": failures,
        "quiet": timings.quiet,
        "error": None,
    }


def _calls(segment: Any) -> Sequence[Any]:
    return getattr(segment, "calls", ())


def _shown(losses: Sequence[float]) -> str:
    return ", ".join(f"{loss:.5g}" for loss in losses)


def _open(side: str, source: str, file: Path, settings: Settings) -> Run:
    """A function that runs one step on feeds and returns the loss, from the model's own weights on."""
    if side == GRAPHOPT:
        from graphopt.artifact import open_artifact

        return open_artifact(file).session(threads=settings.threads).run
    task = tasks.of(source)
    step = task.step()
    if side == "onnxruntime":
        from graphopt.training.reference import ReferenceEngine

        return ReferenceEngine(step.model, threads=settings.threads).step
    if side not in PEERS:
        raise GraphoptError(f"{side} trains nothing here; choose among {', '.join(PEERS)}")
    from graphopt.bench.training.torch_step import TorchStep

    labels = step.signature.labels
    assert labels is not None
    inputs = [port.name for port in step.signature.ports if port.name != labels]
    return TorchStep(task, inputs, labels, compiled=side == "torch-compile").run


def _peak(side: str, source: str, file: Path, threads: int) -> int | None:
    """Peak resident bytes that a step adds to a process of its own."""
    arguments = [sys.executable, "-P", "-m", "graphopt.bench.worker", "training-peak", side, source, str(file)]
    done = subprocess.run([*arguments, str(threads)], capture_output=True, text=True, timeout=600, check=False)
    return int(done.stdout) if done.returncode == 0 and done.stdout.strip().isdigit() else None


def peak_of_this_process(side: str, source: str, file: Path, threads: int) -> int | None:
    """Peak resident bytes that opening the step and running it three times add to this process (Linux only)."""
    if side == GRAPHOPT:
        from graphopt.runtime.devices import library

        library.runtime()
    else:
        import torch

        torch.set_num_threads(threads)
    feeds = peak.kept(file.parent)

    def work() -> None:
        run = _open(side, source, file, Settings(threads))
        for _ in range(_CHECKED):
            run(feeds)

    return peak.added(work)
