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
from graphopt.bench.peers import Graphopt, Run, peer
from graphopt.errors import GraphoptError

_MEMORY_SECONDS = 300
_SLOW_SECONDS = 1.0
"""A peer whose run takes longer is timed apart, few runs beside graphopt: TVM's default code is very slow."""
_SLOW_RUNS = 3


def measure(
    source: str,
    threads: int,
    runs: int | None,
    peers: Sequence[str],
    say: Callable[[str], None] = lambda _: None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    costs: str | None = None,
) -> dict[str, Any]:
    """Everything the table shows of one model, as JSON values.

    Args:
        source: an ONNX file or `zoo:NAME`.
        threads: of all sides.
        runs: counted runs per side; None takes as many as fit.
        peers: names in `graphopt.bench.peers.PEERS`. One that cannot run the model, or computes something else than
            ONNX Runtime, has no time: `failures` says why.
        say: is told what is being done.
        shapes: static shapes of inputs that the model leaves open.
        costs: what algorithms are chosen by, as `compile_model` has it.

    Raises:
        GraphoptError: the model cannot be compiled or run.
    """
    for name in peers:
        peer(name).load()  # torch before TVM: the other order aborts the process
    import graphopt
    from graphopt.bench import reference
    from graphopt.compiler import compile_model
    from graphopt.models.zoo import save
    from graphopt.report.compilation import memory
    from graphopt.verify import compare, random_inputs, run_onnxruntime

    say("compiling")
    file = _file(source)
    loaded = graphopt.load(file, shapes=shapes).model
    start = time.perf_counter()
    compiled = compile_model(str(file), shapes=shapes, costs=costs, threads=threads)
    seconds = {Graphopt.name: time.perf_counter() - start}
    say("checking")
    feeds = random_inputs(loaded, 0)
    expected = run_onnxruntime(file, feeds)
    exact = reference.float64(file, feeds) if source.startswith("zoo:layer/") else None
    with tempfile.TemporaryDirectory(prefix="graphopt-bench-") as name:
        folder = Path(name)
        files = {Graphopt.name: compiled.artifact.save(folder / "model.gopt")}
        if any(peer(each).prepared for each in peers):
            save(loaded, folder / "loaded.onnx")
        files |= {each: folder / "loaded.onnx" if peer(each).prepared else file for each in peers}
        sessions: dict[str, Run] = {}
        failures: dict[str, str] = {}
        errors: dict[str, float | None] = {}
        slow = []
        mismatch = None
        for side, path in files.items():
            say(f"opening with {side}" if side in peers else "checking")
            start = time.perf_counter()
            try:
                run = peer(side).open(path, threads, costs)
                outputs = run(feeds)
            except Exception as error:  # a peer that cannot run the model is a row, whatever it throws
                if side == Graphopt.name:
                    raise
                failures[side] = _sentence(error)
                continue
            seconds.setdefault(side, time.perf_counter() - start)
            wrong = compare(expected, outputs)
            if wrong and side != Graphopt.name:
                failures[side] = (
                    f"it computes something else than ONNX Runtime without optimizations: {wrong[0].message}"
                )
                continue
            mismatch = wrong[0].message if wrong else mismatch
            errors[side] = reference.relative_error(exact, outputs) if exact is not None else None
            sessions[side] = run
            start = time.perf_counter()
            run(feeds)
            if side != Graphopt.name and time.perf_counter() - start > _SLOW_SECONDS:
                slow.append(side)
        groups = [[side for side in sessions if side not in slow], *([Graphopt.name, side] for side in slow)]
        found: dict[str, dict[str, Any]] = {}
        ratios = {}
        quiet = True
        for group in groups:
            say(f"timing {', '.join(group)}")
            timed = runs if group is groups[0] else min(runs or _SLOW_RUNS, _SLOW_RUNS)
            timings = timing.interleave([functools.partial(sessions[side], feeds) for side in group], timed)
            quiet &= timings.quiet
            for index, (side, median) in enumerate(zip(group, intervals.medians(timings.rounds), strict=True)):
                found.setdefault(side, {**asdict(median), "runs": sum(len(one[index]) for one in timings.rounds)})
                if index:
                    estimate, deviation = intervals.ratio(timings.rounds, 0, index)
                    ratios[side] = {**asdict(estimate), "log_deviation": deviation}
        opened = list(sessions)
        sessions.clear()
        say("measuring memory")
        for index, array in enumerate(feeds.values()):
            np.save(folder / f"{index}.npy", array.astype(str) if array.dtype.hasobject else array, allow_pickle=False)
        (folder / "names.json").write_text(json.dumps(list(feeds)), encoding="utf-8")
        for side in opened:
            found[side]["peak_bytes"] = None if peer(side).compiles else _peak(side, files[side], threads, folder)
            found[side]["compile_seconds"] = seconds[side]
            found[side]["relative_error"] = errors[side]
    return {
        "model": source,
        "compile_seconds": seconds[Graphopt.name],
        "fallback_nodes": len(compiled.fallbacks),
        "memory": memory(compiled.artifact),
        "equal": mismatch is None,
        "mismatch": mismatch,
        "sides": {side: found[side] for side in opened},
        "ratios": {side: ratios[side] for side in opened if side in ratios},
        "failures": failures,
        "quiet": quiet,
        "error": None,
    }


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, GraphoptError) else f"{type(error).__name__}: {text}"


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
