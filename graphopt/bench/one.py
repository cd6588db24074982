"""The benchmark of one model: compile, check, time against the peers, measure memory."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.bench import intervals, timing
from graphopt.bench.peers.runtimes import Graphopt, peer
from graphopt.bench.sides import Settings, Side
from graphopt.errors import GraphoptError

if TYPE_CHECKING:
    import onnx_ir as ir

    from graphopt.verify.judge import Judge

_SLOW_SECONDS = 1.0
"""A peer with a slower run is timed separately, with few runs, beside graphopt: TVM's default code is very slow."""
_SLOW_RUNS = 3
_REFERENCE = "ONNX Runtime without optimizations"

Say = Callable[[str], None]


@dataclass(slots=True)
class Opened:
    """The sides that compute correct outputs, and the failures of the others.

    `slow` are host peers that are timed separately; `mismatch` says what graphopt computes wrong.
    """

    sides: dict[str, Side] = field(default_factory=dict)
    slow: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    errors: dict[str, dict[str, float | None]] = field(default_factory=dict)
    mismatch: str | None = None
    unstable: list[str] = field(default_factory=list)
    """Outputs of graphopt that differ but prove nothing, because ONNX Runtime does not reproduce them itself."""


def measure(
    source: str,
    settings: Settings,
    runs: int | None,
    peers: Sequence[str],
    say: Say = lambda _: None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    inputs: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything that the table shows of one model, as JSON values.

    Correctness comes first: a side whose outputs differ from ONNX Runtime's on the CPU, beyond the tolerances of the
    precision, is not timed, and if that side is graphopt no side is.

    Args:
        source: an ONNX file or `zoo:NAME`.
        settings: settings of all sides.
        runs: counted runs per side; None takes as many as fit.
        peers: names in `bench.peers.runtimes.PEERS`. One that cannot run the model, or computes wrong outputs, has no
            time: `failures` gives the reason.
        say: called with the current activity.
        shapes: static shapes of inputs that the model leaves open.
        inputs: arrays to run with; missing ones are random. They fix open dimensions too.

    Raises:
        GraphoptError: the model cannot be compiled or run.
    """
    for name in peers:
        peer(name).load()  # import torch before TVM: the other order aborts the process
    with _file(source) as file:
        return _measure(source, file, settings, runs, peers, say, shapes, inputs)


def _measure(
    source: str,
    file: Path,
    settings: Settings,
    runs: int | None,
    peers: Sequence[str],
    say: Say,
    shapes: Mapping[str, Sequence[int]] | None,
    inputs: Mapping[str, Any] | None,
) -> dict[str, Any]:
    from graphopt.bench import peak
    from graphopt.bench.layers import native
    from graphopt.compiler import compile_model
    from graphopt.frontend.load import load
    from graphopt.pipeline.verification import given_shapes
    from graphopt.report.compilation import memory
    from graphopt.verify.judge import judge
    from graphopt.verify.precisions import tolerances

    say("compiling")
    shapes = {**given_shapes(file, inputs or {}), **(shapes or {})}
    opened_model = load(file, shapes=shapes)
    loaded = opened_model.model
    arbiter = judge(opened_model.original, loaded, 0, inputs, tolerances(settings.precision))
    start = time.perf_counter()
    compiled = compile_model(
        str(file),
        target=settings.target,
        level=settings.level,
        precision=settings.precision,
        shapes=shapes,
        costs=settings.costs,
        threads=settings.threads,
    )
    seconds = time.perf_counter() - start
    feeds = arbiter.feeds
    with tempfile.TemporaryDirectory(prefix="graphopt-bench-") as name:
        folder = Path(name)
        files = {Graphopt.name: compiled.artifact.save(folder / "model.gopt")}
        size = files[Graphopt.name].stat().st_size
        files |= _files(file, loaded, peers, settings, folder)
        opened = _open(file, files, settings, arbiter, source.startswith("zoo:layer/"), say)
        opened.seconds[Graphopt.name] = seconds
        measured_sides: dict[str, dict[str, Any]] = {}
        ratios: dict[str, dict[str, Any]] = {}
        quiet = True
        if opened.mismatch is None:
            measured_sides, ratios, quiet = _time(opened, feeds, runs, say)
        say("measuring memory")
        on_device = {side: (opened_side.device_bytes, opened_side.sets) for side, opened_side in opened.sides.items()}
        opened.sides.clear()
        peak.keep(feeds, folder)
        for side, row in measured_sides.items():
            nbytes, row["sets"] = on_device[side]
            host = nbytes is None and not peer(side).compiles and not settings.cuda
            measured = peak.of_its_own_process(side, files[side], settings.threads, folder) if host else nbytes
            row |= {"peak_bytes": measured, "compile_seconds": opened.seconds[side], **opened.errors[side]}
    return {
        "model": source,
        "compile_seconds": seconds,
        "native_nodes": len(native(compiled.artifact)),
        "fallback_nodes": len(compiled.fallbacks),
        "artifact_bytes": size,
        "memory": memory(compiled.artifact),
        "equal": opened.mismatch is None,
        "mismatch": opened.mismatch,
        "unstable": opened.unstable,
        "notes": list(arbiter.notes),
        "sides": measured_sides,
        "ratios": {side: ratios[side] for side in measured_sides if side in ratios},
        "failures": opened.failures,
        "quiet": quiet,
        "error": None,
    }


def _files(file: Path, loaded: ir.Model, peers: Sequence[str], settings: Settings, folder: Path) -> dict[str, Path]:
    """The file that each peer opens: the user's file, or the model as graphopt prepared it.

    On a GPU that is after `fuse`: torch gets BatchNorm folded and attention as one function, as its users write it.
    """
    if any(peer(name).prepared for name in peers):
        from graphopt.models.zoo import save
        from graphopt.pipeline.pipeline import Pipeline

        model = loaded.clone()
        if settings.cuda:
            Pipeline.parse("normalize,fuse").run(model)
        save(model, folder / "prepared.onnx")
    return {name: folder / "prepared.onnx" if peer(name).prepared else file for name in peers}


def _open(file: Path, files: Mapping[str, Path], settings: Settings, arbiter: Judge, layer: bool, say: Say) -> Opened:
    """Open every side and compare its outputs with ONNX Runtime's on the user's `file`; graphopt is the first.

    Raises:
        GraphoptError: graphopt cannot run the model.
    """
    from graphopt.bench import reference
    from graphopt.verify.oracle import UNSTABLE

    say("checking")
    feeds, expected = arbiter.feeds, arbiter.expected
    exact = reference.float64(file, feeds) if layer else None
    opened = Opened()
    for side, path in files.items():
        if side != Graphopt.name:
            say(f"opening with {side}")
        start = time.perf_counter()
        try:
            ready = peer(side).open(path, settings)
            outputs = ready.run(feeds)
        except Exception as error:  # a peer that cannot run the model is a row, whatever it raises
            if side == Graphopt.name:
                raise
            opened.failures[side] = _sentence(error)
            continue
        opened.seconds[side] = time.perf_counter() - start
        wrong = [mismatch for mismatch in arbiter.mismatches(outputs) if mismatch.kind != UNSTABLE]
        if side == Graphopt.name:
            opened.unstable = sorted(arbiter.lost)
        if wrong and side == Graphopt.name:
            opened.mismatch = wrong[0].message
            return opened
        if wrong:
            opened.failures[side] = f"it computes something else than {_REFERENCE}: {wrong[0].message}"
            continue
        opened.errors[side] = {
            "relative_error": reference.relative_error(exact, outputs) if exact is not None else None,
            "largest_error": _largest(expected, outputs),
        }
        opened.sides[side] = ready
        start = time.perf_counter()
        ready.run(feeds)
        if side != Graphopt.name and time.perf_counter() - start > _SLOW_SECONDS and not settings.cuda:
            opened.slow.append(side)
    return opened


def _time(
    opened: Opened, feeds: Mapping[str, Any], runs: int | None, say: Say
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]], bool]:
    """Medians by side, ratios to graphopt by peer, and whether all blocks were quiet; slow peers in separate groups."""
    blocks = {side: opened_side.block(feeds) for side, opened_side in opened.sides.items()}
    groups = [[side for side in blocks if side not in opened.slow], *([Graphopt.name, side] for side in opened.slow)]
    measured_sides: dict[str, dict[str, Any]] = {}
    ratios: dict[str, dict[str, Any]] = {}
    quiet = True
    for group in groups:
        say(f"timing {', '.join(group)}")
        timed = runs if group is groups[0] else min(runs or _SLOW_RUNS, _SLOW_RUNS)
        timings = timing.interleave([blocks[side] for side in group], timed)
        quiet &= timings.quiet
        for index, (side, median) in enumerate(zip(group, intervals.medians(timings.rounds), strict=True)):
            measured_sides.setdefault(side, {**asdict(median), "runs": sum(len(one[index]) for one in timings.rounds)})
            if index:
                estimate, deviation = intervals.ratio(timings.rounds, 0, index)
                ratios[side] = {**asdict(estimate), "log_deviation": deviation}
    return {side: measured_sides[side] for side in opened.sides}, ratios, quiet


def _largest(expected: Mapping[str, Any], actual: Mapping[str, Any]) -> float | None:
    """The largest difference of an output over its largest value; None where no output has floats."""
    errors = []
    for name, wanted in expected.items():
        comparable = isinstance(wanted, np.ndarray) and wanted.dtype.kind == "f" and wanted.size
        if comparable and np.shape(actual[name]) == wanted.shape:
            difference = np.abs(np.subtract(actual[name], wanted, dtype=np.float64)).max()
            errors.append(float(difference) / (float(np.abs(wanted).max()) or 1.0))
    return max(errors, default=None)


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, GraphoptError) else f"{type(error).__name__}: {text}"


@contextlib.contextmanager
def _file(source: str) -> Iterator[Path]:
    """The ONNX file that every side opens; that of a compressed model exists as long as it is used."""
    from graphopt.storage.restore import decompress, is_compressed_file

    if source.startswith("zoo:"):
        from graphopt import models

        yield models.build(source.removeprefix("zoo:"))
        return
    path = Path(source)
    if not path.is_file():
        raise GraphoptError(f"{source} is not a file; give an ONNX file or zoo:NAME")
    if not is_compressed_file(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="graphopt-bench-") as folder:
        yield decompress(path, Path(folder) / "model.onnx")[0]
