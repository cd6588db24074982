"""Every kernel of one compiled model: its time, its work, and how near it comes to what the machine can do.

The peaks are measured here, with the same threads: arithmetic by the kernel of our own product of 1024 cubed (its
fastest run), bandwidth by copies of arrays that no cache holds, one slice per thread (bytes read and written).
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
    model, target = compiled.pipeline.model, compiled.artifact.manifest["target"]
    backend = load_target(target["name"], target["level"], threads, cache=True)
    wrong = errors.errors(model, errors.before_selection(loaded), native(compiled.artifact), backend, threads)
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
    """One per kernel call or fallback segment, in order of execution.

    Args:
        seconds: of each.
        flops: operations by node; each node's count once, for the slowest of the kernels that compute it.
        peak: `flops` and `bandwidth` of the machine, per second.
        errors: relative rounding errors by node, shown where the node's operations count.
    """
    calls = [call for stage in artifact.program.stages for call in _calls(stage)]
    known = errors or {}
    owners: dict[str, int] = {}
    for index, (_, origin, _) in enumerate(calls):
        for node in origin:
            if node not in owners or seconds[index] > seconds[owners[node]]:
                owners[node] = index
    choices = artifact.manifest.get("choices", [])
    found = []
    for index, (symbol, origin, size) in enumerate(calls):
        own = [node for node in origin if owners[node] == index]
        work = sum(flops.get(node, 0) for node in own)
        # What the roofline allows (Williams, Waterman and Patterson 2009): as fast as the slower of the two.
        memory, arithmetic = size / peak["bandwidth"], work / peak["flops"]
        taken = max(seconds[index], 1e-9)
        algorithm, tile = _choice(origin, choices)
        found.append({
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
    return found


def native(artifact: Artifact) -> set[str]:
    """Names of the nodes that kernels compute."""
    segments = [segment for stage in artifact.program.stages for segment in stage.segments]
    calls = [call for each in segments if isinstance(each, NativeSegment) for call in each.calls]
    return {node for call in calls for node in call.origin}


def arithmetic_peak(threads: int, costs: str | None = None) -> float:
    """Operations per second of the kernel of a product of 1024 cubed, its fastest run."""
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
    """Bytes per second, read and written, of copying arrays larger than caches; the fastest copy."""
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
    found = []
    for segment in stage.segments:
        if isinstance(segment, FallbackSegment):
            nodes = tuple(node for node, _ in segment.reasons)
            found.append((segment.model, nodes, sum(sizes[name] for name in (*segment.inputs, *segment.outputs))))
        elif isinstance(segment, SelectSegment):
            found.append((SELECT, segment.origin, sum(sizes[name] for name in segment.outputs)))
        else:
            for call in segment.calls:
                moved = sum(sizes[name] for name in (*call.inputs, *call.outputs))
                found.append((call.symbol, call.origin, moved))
    return found


def _choice(origin: Sequence[str], choices: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Algorithm and tile chosen for a node, whose rewritten nodes are called `NODE.Something`."""
    for node in origin:
        for choice in choices:
            if node == choice["node"] or node.startswith(f"{choice['node']}."):
                return str(choice["algorithm"]), str(choice.get("tile") or "")
    return "", ""
