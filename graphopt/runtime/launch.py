"""Starting all ranks of an artifact on this machine, and saying which one failed if one does."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from graphopt.artifact import open_artifact
from graphopt.errors import RankError
from graphopt.runtime import cpu, feeds, files

DEFAULT_LIMIT = 60.0
_GRACE = 15.0


def launch(
    artifact: Path,
    ranks: int,
    inputs: Mapping[str, Any],
    output: Path,
    timeout: float = DEFAULT_LIMIT,
    threads: int | None = None,
) -> dict[str, Path]:
    """Run an artifact of several stages, one process per stage, and give the file of every output.

    Args:
        artifact: path of the artifact; it is opened and checked here first.
        ranks: must be its number of stages.
        inputs: input name -> array, or path of a .npy file.
        output: folder that gets NAME.npy per output.
        timeout: seconds without a sign of life after which a rank counts as lost and all end.
        threads: of each rank; default the physical cores shared out among the ranks.

    Raises:
        ArtifactError, FeedError: the artifact or an input cannot be used.
        RankError: a rank failed or was lost; names it.
    """
    program = open_artifact(artifact).program
    if ranks != len(program.stages):
        stages = len(program.stages)
        raise RankError(
            f"{artifact} has {stages} stages and cannot run on {ranks} ranks: compile it with --ranks {ranks}"
        )
    given = {name: files.read(item, name) if isinstance(item, Path) else item for name, item in inputs.items()}
    checked = feeds.check(program.inputs, given, program.micro_batches)
    with tempfile.TemporaryDirectory(prefix="graphopt-") as scratch:
        arguments = [str(artifact), "--output", str(output), "--timeout", str(timeout)]
        arguments += ["--threads", str(threads if threads is not None else max(1, cpu.default_threads() // ranks))]
        for index, (name, item) in enumerate(checked.items()):
            path = Path(scratch) / f"{index}.npy"
            array = np.asarray(item)
            np.save(path, array.astype(str) if array.dtype.hasobject else array, allow_pickle=False)
            arguments += ["--input", f"{name}={path}"]
        _run(ranks, arguments, Path(scratch), timeout)
    return {port.name: output / files.file_name(port.name) for port in program.outputs}


def _run(ranks: int, arguments: list[str], scratch: Path, timeout: float) -> None:
    common = {
        **os.environ,
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    logs: list[BinaryIO] = []
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(ranks):
            logs.append((scratch / f"rank_{rank}.log").open("w+b"))
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-P", "-m", "graphopt.runtime.worker", *arguments],
                    env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=logs[rank],
                )
            )
        failed = _wait(processes, timeout)
        if failed:
            raise RankError(_explain(processes, failed, [_last_error(log) for log in logs]))
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        for log in logs:
            log.close()


def _wait(processes: list[subprocess.Popen[bytes]], timeout: float) -> list[int]:
    """The ranks that failed, in the order in which they ended; empty if all ended well.

    After a failure the others get the limit (and a little) to end by themselves and say what they saw.
    """
    failed: list[int] = []
    open_ranks = set(range(len(processes)))
    deadline = float("inf")
    while open_ranks and time.monotonic() < deadline:
        for rank in sorted(open_ranks):
            code = processes[rank].poll()
            if code is None:
                continue
            open_ranks.discard(rank)
            if code:
                failed.append(rank)
                deadline = min(deadline, time.monotonic() + min(timeout + 5, _GRACE))
        time.sleep(0.02)
    return failed


def _explain(processes: list[subprocess.Popen[bytes]], failed: list[int], errors: list[str]) -> str:
    """One sentence: who was the first to go, and what the others were doing."""
    killed = [rank for rank in failed if (processes[rank].returncode or 0) < 0]
    if killed:
        rank = killed[0]
        seen = next((errors[other] for other in failed if other != rank and errors[other]), "")
        cause = signal.Signals(-int(processes[rank].returncode or 0)).name
        return f"rank {rank} (stage {rank}) was killed by {cause}" + (f"; {seen}" if seen else ": start the run again")
    own = [errors[rank] for rank in failed if errors[rank]]
    first = next((text for text in own if " while rank " not in text), own[0] if own else "")
    return first or f"rank {failed[0]} (stage {failed[0]}) failed with exit code {processes[failed[0]].returncode}"


def _last_error(log: BinaryIO) -> str:
    """The sentence a worker ended with, or the last line of a traceback."""
    log.flush()
    log.seek(0)
    lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    found = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return found[0] if found else (lines[-1] if lines else "")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
