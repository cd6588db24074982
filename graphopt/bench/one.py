"""The benchmark of one model: compile, check, time beside the peers, measure memory."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.bench import intervals, timing
from graphopt.bench.peers import Graphopt, peer
from graphopt.errors import GraphoptError

_MEMORY_SECONDS = 300


def measure(
    source: str, threads: int, runs: int | None, peers: Sequence[str], say: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Everything the table shows of one model, as JSON values.

    Args:
        source: an ONNX file or `zoo:NAME`.
        threads: of both sides.
        runs: counted runs per side; None takes as many as fit.
        peers: names in `graphopt.bench.peers.PEERS`.
        say: is told what is being done.

    Raises:
        GraphoptError: the model cannot be compiled or run.
    """
    import graphopt
    from graphopt.compiler import compile_model
    from graphopt.report.compilation import memory
    from graphopt.verify import compare, random_inputs, run_onnxruntime

    say("compiling")
    file = _file(source)
    loaded = graphopt.load(file).model
    start = time.perf_counter()
    compiled = compile_model(str(file))
    compile_seconds = time.perf_counter() - start
    say("checking")
    feeds = random_inputs(loaded, 0)
    expected = run_onnxruntime(file, feeds)
    with tempfile.TemporaryDirectory(prefix="graphopt-bench-") as name:
        folder = Path(name)
        artifact = compiled.artifact.save(folder / "model.gopt")
        files = {Graphopt.name: artifact, **dict.fromkeys(peers, file)}
        sessions = {side: peer(side).open(path, threads) for side, path in files.items()}
        mismatches = compare(expected, sessions[Graphopt.name](feeds))
        say("timing")
        timings = timing.interleave([functools.partial(run, feeds) for run in sessions.values()], runs)
        sessions.clear()
        say("measuring memory")
        for index, array in enumerate(feeds.values()):
            np.save(folder / f"{index}.npy", array.astype(str) if array.dtype.hasobject else array, allow_pickle=False)
        (folder / "names.json").write_text(json.dumps(list(feeds)), encoding="utf-8")
        peaks = {side: _peak(side, path, threads, folder) for side, path in files.items()}
    found = intervals.medians(timings.rounds)
    sides = {
        side: {
            **asdict(found[index]),
            "runs": sum(len(one[index]) for one in timings.rounds),
            "peak_bytes": peaks[side],
        }
        for index, side in enumerate(files)
    }
    ratios = {}
    for index, side in enumerate(files):
        if index:
            estimate, deviation = intervals.ratio(timings.rounds, 0, index)
            ratios[side] = {**asdict(estimate), "log_deviation": deviation}
    return {
        "model": source,
        "compile_seconds": compile_seconds,
        "fallback_nodes": len(compiled.fallbacks),
        "memory": memory(compiled.artifact),
        "equal": not mismatches,
        "mismatch": mismatches[0].message if mismatches else None,
        "sides": sides,
        "ratios": ratios,
        "quiet": timings.quiet,
        "error": None,
    }


def peak_memory(side: str, model: Path, threads: int, feeds: Mapping[str, Any]) -> int | None:
    """Bytes of resident memory that opening and running `model` adds to this process at its height (Linux only)."""
    runtime = peer(side)
    runtime.load()
    before = _status("VmRSS")
    try:
        # Forget the height reached while importing (proc(5), clear_refs).
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return None
    run = runtime.open(model, threads)
    for _ in range(3):
        run(feeds)
    after = _status("VmHWM")
    return None if before is None or after is None else max(after - before, 0)


def _status(key: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    found = next((line for line in lines if line.startswith(f"{key}:")), None)
    return None if found is None else int(found.split()[1]) * 1024


def _peak(side: str, model: Path, threads: int, folder: Path) -> int | None:
    """`peak_memory` in a process of its own, where nothing was compiled before."""
    # -P: a folder called graphopt where the user stands must not be taken for this package.
    arguments = [
        sys.executable,
        "-P",
        "-m",
        "graphopt.bench.worker",
        "peak",
        side,
        str(model),
        str(threads),
        str(folder),
    ]
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=_MEMORY_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return None
    return int(done.stdout) if done.returncode == 0 and done.stdout.strip().isdigit() else None


def _file(source: str) -> Path:
    if source.startswith("zoo:"):
        from graphopt import models

        return models.build(source.removeprefix("zoo:"))
    path = Path(source)
    if not path.is_file():
        raise GraphoptError(f"{source} is not a file; give an ONNX file or zoo:NAME")
    return path
