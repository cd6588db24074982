"""Every kernel of one compiled model: its time, its operations and bytes, and its share of the machine's roofline.

The peaks are measured on this machine, with the same threads: arithmetic by our own GEMM kernel of size 1024 cubed (its
fastest run), bandwidth by copies of arrays larger than all caches, one slice per thread (bytes read and written).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from graphopt.artifact import Artifact
from graphopt.bench.kernel_times import medians, times
from graphopt.bench.sides import Settings
from graphopt.program.program import FallbackSegment, NativeSegment, SelectSegment, Stage
from graphopt.runtime.stage import SELECT

RUNS = 30
PEAK_MODEL = "zoo:layer/gemm-1024"
_COPY_BYTES = 256 << 20
_COPIES = 5


def profile(
    source: str,
    settings: Settings,
    runs: int | None = None,
    say: Callable[[str], None] = lambda _: None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, Any]:
    """The document of `graphopt bench --layers`; for a device that of `device_layers`.

    Raises:
        GraphoptError: the model cannot be compiled or run.
    """
    if settings.target != "llvm":
        from graphopt.bench import device_layers

        return device_layers.profile(source, settings, runs or RUNS, say, shapes)
    from graphopt.bench import errors
    from graphopt.bench.suite import environment
    from graphopt.compiler import compile_model
    from graphopt.frontend.load import load
    from graphopt.graph.analysis import node_flops
    from graphopt.targets import load_target
    from graphopt.verify.oracle import random_inputs

    threads, costs = settings.threads, settings.costs
    say("compiling")
    compiled = compile_model(
        source, level=settings.level, precision=settings.precision, shapes=shapes, costs=costs, threads=threads
    )
    loaded = load(source, shapes=shapes).model
    feeds = random_inputs(loaded, 0)
    say("measuring the machine")
    peak = {"flops": arithmetic_peak(threads, costs), "bandwidth": bandwidth(threads), "model": PEAK_MODEL}
    say("timing kernels")
    seconds = medians(compiled.artifact, feeds, threads, runs or RUNS)
    say("checking errors")
    model, described = compiled.pipeline.model, compiled.artifact.manifest["target"]
    target = load_target(described["name"], described["level"], threads, cache=True)
    wrong = errors.errors(model, errors.before_selection(loaded), native(compiled.artifact), target, threads)
    flops = {str(node.name): node_flops(node) for node in model.graph.all_nodes()}
    kernels = rows(compiled.artifact, seconds, flops, peak, wrong)
    return {"model": source, "threads": threads, "environment": environment(), "peak": peak, "kernels": kernels}


def rows(
    artifact: Artifact,
    seconds: Sequence[float],
    flops: Mapping[str, int],
    peak: Mapping[str, Any],
    errors: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """One row per kernel call or fallback segment, in order of execution.

    Args:
        seconds: time of each call or segment.
        flops: operations by node; each node's count is used once, for the slowest of the kernels that compute it.
        peak: `flops` and `bandwidth` of the machine, per second.
        errors: relative rounding errors by node, shown in the row that counts the node's operations.
    """
    calls = [call for stage in artifact.program.stages for call in _calls(stage)]
    known = errors or {}
    owners: dict[str, int] = {}
    for index, (_, origin, _) in enumerate(calls):
        for node in origin:
            if node not in owners or seconds[index] > seconds[owners[node]]:
                owners[node] = index
    choices = artifact.manifest.get("choices", [])
    table = []
    for index, (symbol, origin, size) in enumerate(calls):
        own = [node for node in origin if owners[node] == index]
        work = sum(flops.get(node, 0) for node in own)
        # The roofline (Williams, Waterman and Patterson 2009): the time of the slower of arithmetic and memory.
        memory, arithmetic = size / peak["bandwidth"], work / peak["flops"]
        taken = max(seconds[index], 1e-9)
        algorithm, tile = _choice(origin, choices)
        table.append({
            "kernel": symbol,
            "nodes": list(origin),
            "algorithm": algorithm,
            "tile": tile,
            "seconds": seconds[index],
            "flops": work,
            "bytes": size,
            "flops_per_second": work / taken,
            "bytes_per_second": size / taken,
            "share_of_peak": max(memory, arithmetic) / taken,
            "bound": "arithmetic" if arithmetic > memory else "memory",
            "error": max((known[node] for node in own if node in known), default=None),
        })  # fmt: skip
    return table


def native(artifact: Artifact) -> set[str]:
    """Names of the nodes that kernels compute."""
    segments = [segment for stage in artifact.program.stages for segment in stage.segments]
    calls = [call for segment in segments if isinstance(segment, NativeSegment) for call in segment.calls]
    return {node for call in calls for node in call.origin}


def arithmetic_peak(threads: int, costs: str | None = None) -> float:
    """Operations per second of our GEMM kernel of size 1024 cubed, in its fastest run."""
    from graphopt.compiler import compile_model
    from graphopt.frontend.load import load
    from graphopt.graph.analysis import flops
    from graphopt.verify.oracle import random_inputs

    loaded = load(PEAK_MODEL).model
    work = flops(loaded)
    artifact = compile_model(PEAK_MODEL, threads=threads, costs=costs).artifact
    seconds = times(artifact, random_inputs(loaded, 0), threads, RUNS)
    return float(work / seconds.max(axis=1).min())


def bandwidth(threads: int) -> float:
    """Bytes per second, read and written, of copying arrays larger than the caches; the fastest copy."""
    source = np.ones(_COPY_BYTES // 8)
    target = np.zeros_like(source)
    pieces = list(zip(np.array_split(source, threads), np.array_split(target, threads), strict=True))
    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(_COPIES):
            start = time.perf_counter()
            list(pool.map(lambda piece: np.copyto(piece[1], piece[0]), pieces))
            best = min(best, time.perf_counter() - start)
    return 2 * source.nbytes / best


def _calls(stage: Stage) -> list[tuple[str, tuple[str, ...], int]]:
    """(symbol, nodes, bytes of inputs and outputs), in order."""
    sizes = {value.name: value.nbytes for value in stage.values}
    table = []
    for segment in stage.segments:
        if isinstance(segment, FallbackSegment):
            nodes = tuple(node for node, _ in segment.reasons)
            table.append((segment.model, nodes, sum(sizes[name] for name in (*segment.inputs, *segment.outputs))))
        elif isinstance(segment, SelectSegment):
            table.append((SELECT, segment.origin, sum(sizes[name] for name in segment.outputs)))
        else:
            for call in segment.calls:
                moved = sum(sizes[name] for name in (*call.inputs, *call.outputs))
                table.append((call.symbol, call.origin, moved))
    return table


def _choice(origin: Sequence[str], choices: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Algorithm and tile chosen for a node; nodes rewritten from it are called `NODE.Something`."""
    for node in origin:
        for choice in choices:
            if node == choice["node"] or node.startswith(f"{choice['node']}."):
                return str(choice["algorithm"]), str(choice.get("tile") or "")
    return "", ""
