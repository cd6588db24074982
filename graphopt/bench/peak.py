"""Peak host memory of a model (Linux only)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.bench.peers.runtimes import peer
from graphopt.bench.sides import Settings

_SECONDS = 300


def of_this_process(side: str, model: Path, threads: int, feeds: Mapping[str, Any]) -> int | None:
    """Peak resident memory, in bytes, that opening and running `model` adds to this process (Linux only)."""
    runtime = peer(side)
    runtime.load()

    def work() -> None:
        opened = runtime.open(model, Settings(threads))
        for _ in range(3):
            opened.run(feeds)

    return added(work)


def added(work: Callable[[], None]) -> int | None:
    """Peak resident memory, in bytes, that `work` adds to this process (Linux only)."""
    before = _status("VmRSS")
    try:
        # Reset the peak reached while importing (proc(5), clear_refs).
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return None
    work()
    after = _status("VmHWM")
    return None if before is None or after is None else max(after - before, 0)


def _status(key: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    status = next((line for line in lines if line.startswith(f"{key}:")), None)
    return None if status is None else int(status.split()[1]) * 1024


def keep(feeds: Mapping[str, Any], folder: Path) -> None:
    """Write `feeds` where `of_its_own_process` reads them."""
    for index, array in enumerate(feeds.values()):
        np.save(folder / f"{index}.npy", array.astype(str) if array.dtype.hasobject else array, allow_pickle=False)
    (folder / "names.json").write_text(json.dumps(list(feeds)), encoding="utf-8")


def kept(folder: Path) -> dict[str, Any]:
    """The feeds that `keep` wrote."""
    names = json.loads((folder / "names.json").read_text(encoding="utf-8"))
    return {name: np.load(folder / f"{index}.npy", allow_pickle=False) for index, name in enumerate(names)}


def of_its_own_process(side: str, model: Path, threads: int, folder: Path) -> int | None:
    """`of_this_process` in a separate process, in which nothing was compiled before."""
    # -P: a folder called graphopt in the user's current directory must not shadow this package.
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
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return None
    return int(done.stdout) if done.returncode == 0 and done.stdout.strip().isdigit() else None
