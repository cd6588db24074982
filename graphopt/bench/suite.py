"""The benchmark of many models, one process each; a model that fails is a row like the others."""

from __future__ import annotations

import datetime
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.bench import intervals
from graphopt.bench.peers.runtimes import DEFAULT, DEFAULTS
from graphopt.bench.sides import Settings
from graphopt.errors import GraphoptError
from graphopt.version import VERSION

SUITES = ("light", "zoo", "seeded", "layers", "gemm")
_SOURCES = {"light": ("onnx",), "zoo": ("built", "trained"), "seeded": ("seeded",)}
_PREFIXES = {"layers": "layer/conv", "gemm": "layer/gemm"}
_PACKAGES = ("graphopt", "apache-tvm", "onnxruntime", "torch", "numpy")
_ON_GPUS = (
    "nvidia-cuda-nvrtc", "cuda-bindings", "triton",
    "nvidia-cublas", "nvidia-cudnn-cu13", "nvidia-cublas-cu12", "nvidia-cudnn-cu12",
)  # fmt: skip
"""Named as well where a GPU was used: what compiles for it, and what torch calls."""
_LARGE = "layer/gemm-4096"
"""Products that fill a GPU, and take a CPU seconds."""


def suite(name: str, device: bool = False) -> list[str]:
    """The models of a suite: onnx's light models, the zoo's own, the light ones with seeded weights, or layers.

    Args:
        device: whether they are to run on a GPU: the products of the suite `gemm` are larger there.
    """
    from graphopt import models

    if name in _PREFIXES:
        found = [each for each in models.names() if each.startswith(_PREFIXES[name])]
        return [f"zoo:{each}" for each in found if name != "gemm" or each.startswith(_LARGE) == device]
    return [f"zoo:{each}" for each in models.names() if models.describe(each).source in _SOURCES[name]]


def batched(model: str, batch: int) -> str:
    """The name of the zoo's model at another batch.

    Raises:
        GraphoptError: it is a file.
    """
    if not model.startswith("zoo:"):
        raise GraphoptError(f"--batch goes with models of the zoo; give {model} its shapes with --shapes NAME:DxDxD")
    return f"{model}-b{batch}"


def run(
    models: Sequence[str],
    threads: int,
    runs: int | None = None,
    peers: Sequence[str] | None = None,
    say: Callable[[str], None] = lambda _: None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    costs: str | None = None,
    target: str = "llvm",
    level: str | None = None,
    precision: str = "fp32",
    inputs: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Benchmark `models` one after the other; the document that `--json` prints. `say` is told the progress.

    The geometric mean of a peer is over the models that it ran: their number stands beside it.

    Args:
        peers: names in `graphopt.bench.peers.runtimes.PEERS`; None takes those of the target.
        level: None compiles for the CPU or GPU that is here.
        inputs: arrays that every model is run with, as far as it has inputs of these names.

    Raises:
        GraphoptError: `target` needs a device, and there is none.
    """
    facts = None
    if target != "llvm":
        from graphopt.bench import device

        facts = device.find(target)
        level = level or device.level(facts)
    sides = list(DEFAULTS.get(target, DEFAULT) if peers is None else peers)
    settings = asdict(Settings(threads, costs, target, level, precision))
    options: dict[str, Any] = {"settings": settings, "runs": runs, "peers": sides, "shapes": shapes}
    rows = []
    with tempfile.TemporaryDirectory(prefix="graphopt-bench-") as folder:
        if inputs:
            file = Path(folder) / "inputs.npz"
            np.savez(file, *inputs.values())
            options["inputs"] = [str(file), *inputs]
        for number, model in enumerate(models, 1):
            where = f"[{number}/{len(models)}] {model}"
            rows.append(_row(model, options, lambda text, where=where: say(f"{where}: {text}")))  # type: ignore[misc]
    return {
        "target": target,
        "level": level,
        "precision": precision,
        "threads": threads,
        "date": datetime.date.today().isoformat(),
        "environment": environment(facts),
        "models": rows,
        "geometric_mean": means(rows, sides),
    }


def means(rows: Sequence[Mapping[str, Any]], peers: Sequence[str]) -> dict[str, dict[str, Any] | None]:
    """Of every peer the geometric mean of its ratios, with its interval and the number of models that it ran."""
    found: dict[str, dict[str, Any] | None] = {}
    for name in peers:
        ratios = [row["ratios"][name] for row in rows if row["error"] is None and name in row["ratios"]]
        mean = intervals.geometric_mean([(each["value"], each["log_deviation"]) for each in ratios])
        bounds = None if mean is None else {"value": mean.value, "low": mean.low, "high": mean.high}
        found[name] = None if bounds is None else {**bounds, "models": len(ratios)}
    return found


def environment(device: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The machine and the versions that the numbers belong to.

    Args:
        device: facts of the GPU that was used; its compiler and the package that talks to it are named too.
    """
    names = _PACKAGES if device is None else (*_PACKAGES, *_ON_GPUS)
    versions = {name: version for name in names if (version := _version(name)) is not None}
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = {"processor": _processor(), "cpus": cpus, "system": platform.system(), "versions": versions}
    return found if device is None else {**found, "device": dict(device)}


def _version(package: str) -> str | None:
    """None where it is not installed, as on a GPU machine that runs from a checkout and lacks some."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return VERSION if package == "graphopt" else None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _row(model: str, options: Mapping[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    # -P: a folder called graphopt where the user stands must not be taken for this package.
    arguments = [
        sys.executable,
        "-P",
        "-m",
        "graphopt.bench.worker",
        "model",
        model,
        json.dumps(options),
    ]
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8"
    ) as process:
        assert process.stdout is not None
        result: dict[str, Any] | None = None
        for line in process.stdout:
            message = json.loads(line)
            result = message.get("result", result)
            if "say" in message:
                say(message["say"])
    if result is not None:
        return result
    code = process.returncode
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    return {"model": model, "error": f"the process {how} without a result; run `graphopt compile {model}` to see more"}
