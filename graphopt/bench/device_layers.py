"""Every kernel of one model on a device: its time, the predicted time, and its share of the device's roofline.

The peaks come from the device's description (data sheets); they are not measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from graphopt.artifact import Artifact
from graphopt.bench import device
from graphopt.bench.kernel_times import medians
from graphopt.bench.sides import Settings
from graphopt.program.program import FallbackSegment, NativeSegment

_RATES = {"fp32": "float32", "tf32": "tf32", "fp16": "float16", "bf16": "bfloat16"}
"""Precision -> name in `Device.rates`."""


def profile(
    source: str,
    settings: Settings,
    runs: int,
    say: Callable[[str], None],
    shapes: Mapping[str, Sequence[int]] | None,
) -> dict[str, Any]:
    """The document of `graphopt bench --layers` for a device.

    Raises:
        GraphoptError: there is no device, or the model cannot be compiled or run.
    """
    from graphopt.bench.suite import environment
    from graphopt.compiler import compile_model
    from graphopt.frontend.load import load
    from graphopt.report import kernels
    from graphopt.targets.gpu import devices
    from graphopt.verify.oracle import random_inputs

    facts = device.find(settings.target)
    say("compiling")
    compiled = compile_model(
        source,
        target=settings.target,
        level=settings.level or device.level(facts),
        precision=settings.precision,
        shapes=shapes,
        costs=settings.costs,
        threads=settings.threads,
    )
    feeds = random_inputs(load(source, shapes=shapes).model, 0)
    say("timing kernels")
    seconds = medians(compiled.artifact, feeds, settings.threads, runs)
    described = devices.DEVICES.get(compiled.artifact.manifest["target"].get("device"), devices.OPENCL)
    peak = {
        "flops": described.rates.get(_RATES[settings.precision], described.rates["float32"]),
        "bandwidth": described.bandwidth,
        "model": None,
        "device": described.name,
        "rates": dict(described.rates),
    }
    return {
        "model": source,
        "target": settings.target,
        "level": compiled.artifact.manifest["target"].get("gpu"),
        "precision": settings.precision,
        "threads": settings.threads,
        "environment": environment(facts),
        "peak": peak,
        "kernels": rows(compiled.artifact, seconds, kernels.rows(compiled.artifact, compiled.pipeline.model)),
    }


def rows(artifact: Artifact, seconds: Sequence[float], predicted: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per kernel call or fallback segment, in order of execution.

    Args:
        seconds: time of each call or segment.
        predicted: rows of `graphopt.report.kernels`, one per kernel call.
    """
    plans = iter(predicted)
    times = iter(seconds)
    table = []
    for stage in artifact.program.stages:
        for segment in stage.segments:
            if isinstance(segment, FallbackSegment):
                table.append(_fallback(segment, next(times)))
            elif isinstance(segment, NativeSegment):
                table += [_kernel(next(plans), next(times)) for _ in segment.calls]
    return table


def _kernel(plan: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    taken = max(seconds, 1e-9)
    return {
        **{
            key: plan[key]
            for key in ("kernel", "nodes", "algorithm", "tile", "precision", "launches", "flops", "bytes")
        },
        "seconds": seconds,
        "predicted": plan["seconds"],
        "flops_per_second": plan["flops"] / taken,
        "bytes_per_second": plan["bytes"] / taken,
        "share_of_peak": plan["roofline"] / taken,
        "bound": plan["bound"],
        "error": None,
    }


def _fallback(segment: FallbackSegment, seconds: float) -> dict[str, Any]:
    """The row of a segment that ONNX Runtime computes on the host, copies to and from the device included."""
    return {
        "kernel": segment.model,
        "nodes": [node for node, _ in segment.reasons],
        "algorithm": "",
        "tile": "",
        "precision": "",
        "launches": 0,
        "flops": 0,
        "bytes": 0,
        "seconds": seconds,
        "predicted": None,
        "flops_per_second": 0.0,
        "bytes_per_second": 0.0,
        "share_of_peak": 0.0,
        "bound": "host",
        "error": None,
    }
