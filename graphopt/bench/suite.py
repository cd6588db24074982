"""The benchmark of many models, one process each; a model that fails gets a row too."""

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

SUITES = ("light", "zoo", "seeded", "layers", "gemm", "sparse", "train")
_SOURCES = {"light": ("onnx",), "zoo": ("built", "trained"), "seeded": ("seeded",)}
_PREFIXES = {"layers": "layer/conv", "gemm": "layer/gemm"}
_PACKAGES = ("graphopt", "apache-tvm", "onnxruntime", "torch", "numpy")
_ON_GPUS = (
    "nvidia-cuda-nvrtc", "cuda-bindings", "triton",
    "nvidia-cublas", "nvidia-cudnn-cu13", "nvidia-cublas-cu12", "nvidia-cudnn-cu12",
)  # fmt: skip
"""Packages recorded in addition where a GPU was used: its compilers, and the libraries that torch calls."""
_LARGE = "layer/gemm-4096"
"""GEMMs that fill a GPU, and take seconds on a CPU."""


def suite(name: str, device: bool = False) -> list[str]:
    """The models of a suite: onnx's light models, the zoo's own, the light ones with seeded weights, or layers.

    Args:
        device: whether the models run on a GPU: the GEMMs of the suite `gemm` are larger there.
    """
    from graphopt import models

    if name == "sparse":
        from graphopt.models import sparse

        return [f"zoo:{sparse.PREFIX}{layer}" for layer in sparse.grid()]
    if name == "train":
        from graphopt.models import zoo

        return [f"zoo:{info.name}" for info in zoo.TASKS]
    if name in _PREFIXES:
        names = [model for model in models.names() if model.startswith(_PREFIXES[name])]
        return [f"zoo:{model}" for model in names if name != "gemm" or model.startswith(_LARGE) == device]
    return [f"zoo:{model}" for model in models.names() if models.describe(model).source in _SOURCES[name]]


def batched(model: str, batch: int) -> str:
    """The name of the zoo's model at another batch size.

    Raises:
        GraphoptError: the model is a file.
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
    training: bool = False,
) -> dict[str, Any]:
    """Benchmark `models` one after the other; returns the document that `--json` prints. `say` receives the progress.

    The geometric mean of a peer is over the models that it ran; the number of those is given with it.

    Args:
        peers: names in `graphopt.bench.peers.runtimes.PEERS`; None takes those of the target.
        level: None compiles for the CPU or GPU of this machine.
        inputs: arrays that every model is run with, as far as it has inputs of these names.
        training: time a training step of each, with random data; the models are the zoo's own.

    Raises:
        GraphoptError: `target` needs a device, and this machine has none.
    """
    facts = None
    if target != "llvm":
        from graphopt.bench import device

        facts = device.find(target)
        level = level or device.level(facts)
    sides = list(DEFAULTS.get(target, DEFAULT) if peers is None else peers)
    settings = asdict(Settings(threads, costs, target, level, precision))
    options: dict[str, Any] = {"settings": settings, "runs": runs, "peers": sides}
    options |= {"training": True} if training else {"shapes": shapes}
    rows = []
    with tempfile.TemporaryDirectory(prefix="graphopt-bench-") as folder:
        if inputs:
            file = Path(folder) / "inputs.npz"
            np.savez(file, *inputs.values())
            options["inputs"] = [str(file), *inputs]
        for number, model in enumerate(models, 1):
            where = f"[{number}/{len(models)}] {model}"
            row = _row(model, options, lambda text, where=where: say(f"{where}: {text}"))  # type: ignore[misc]
            rows.append({**row, **_sparse_layer(model)})
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


def _sparse_layer(model: str) -> dict[str, Any]:
    """What a row of a layer with sparse weights says of it besides; nothing for other models."""
    from graphopt.models import sparse

    layer = sparse.parse(model.removeprefix("zoo:").removeprefix(sparse.PREFIX))
    if layer is None:
        return {}
    return {"layer": {"shape": layer.spelled, "block": layer.block, "percent": layer.percent}}


def means(rows: Sequence[Mapping[str, Any]], peers: Sequence[str]) -> dict[str, dict[str, Any] | None]:
    """Per peer the geometric mean of its ratios, with its interval and the number of models that it ran."""
    by_peer: dict[str, dict[str, Any] | None] = {}
    for name in peers:
        ratios = [row["ratios"][name] for row in rows if row["error"] is None and name in row["ratios"]]
        mean = intervals.geometric_mean([(ratio["value"], ratio["log_deviation"]) for ratio in ratios])
        bounds = None if mean is None else {"value": mean.value, "low": mean.low, "high": mean.high}
        by_peer[name] = None if bounds is None else {**bounds, "models": len(ratios)}
    return by_peer


def environment(device: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The machine and the versions that the measurements depend on.

    Args:
        device: facts of the GPU that was used; adds the versions of its compiler and its Python package.
    """
    names = _PACKAGES if device is None else (*_PACKAGES, *_ON_GPUS)
    versions = {name: version for name in names if (version := _version(name)) is not None}
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = {"processor": _processor(), "cpus": cpus, "system": platform.system(), "versions": versions}
    return facts if device is None else {**facts, "device": dict(device)}


def _version(package: str) -> str | None:
    """The version of `package`; None if it is not installed, as on a GPU machine that runs from a checkout."""
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
    # -P: a folder called graphopt in the user's current directory must not shadow this package.
    arguments = [
        sys.executable,
        "-P",
        "-m",
        "graphopt.bench.worker",
        "training" if options.get("training") else "model",
        model,
        json.dumps({name: value for name, value in options.items() if name != "training"}),
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
