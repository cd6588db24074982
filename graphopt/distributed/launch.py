"""Starts all ranks of an artifact on this machine, and names the rank that failed if one does."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from graphopt.artifact import open_artifact
from graphopt.distributed.control import Child, Step
from graphopt.errors import RankError
from graphopt.runtime import feeds, files
from graphopt.runtime.devices import host

DEFAULT_LIMIT = 60.0
START_LIMIT = 30.0
"""Least seconds that all ranks have to connect: loading torch takes several on a busy machine."""

_KILLED_GRACE = 2.0
"""Seconds that the others have to report after a rank was killed: connected ranks notice at once."""

_FAILED_GRACE = 5.0
"""The same after a rank ended with an error: it tells the others first, and they may be inside a kernel."""

_SLACK = 2.0
"""Seconds after the limit in which the other ranks may name a silent one; they know better than the launcher."""


def launch(
    artifact: Path,
    ranks: int,
    inputs: Mapping[str, Any],
    output: Path,
    timeout: float = DEFAULT_LIMIT,
    threads: int | None = None,
) -> dict[str, Path]:
    """Run an artifact of several stages, one process per stage; returns the file of every output.

    Args:
        artifact: path of the artifact; it is opened and checked here first.
        ranks: number of stages of the artifact.
        inputs: input name -> array, or path of a .npy file.
        output: folder that gets NAME.npy per output.
        timeout: seconds without a sign of life after which a rank counts as lost and the run ends. Until all ranks are
            connected the limit is START_LIMIT if that is longer.
        threads: threads per rank; the default divides the physical cores among the ranks.

    Raises:
        ArtifactError, FeedError: the artifact or an input cannot be used.
        RankError: a rank failed or was lost; names it.
        SystemExit, KeyboardInterrupt: SIGTERM or SIGINT arrived (in the main thread); all ranks have ended.
    """
    opened = open_artifact(artifact)
    program = opened.program
    if ranks != len(program.stages):
        stages = len(program.stages)
        raise RankError(
            f"{artifact} has {stages} {'stage' if stages == 1 else 'stages'} and cannot run on "
            f"{ranks} {'rank' if ranks == 1 else 'ranks'}: compile it with --ranks {ranks}"
        )
    given = {name: files.read(item, name) if isinstance(item, Path) else item for name, item in inputs.items()}
    checked = feeds.check(program.inputs, given, program.micro_batches, constants=opened.constants)
    with tempfile.TemporaryDirectory(prefix="graphopt-") as scratch:
        arguments = [str(artifact), "--output", str(output), "--timeout", str(timeout)]
        arguments += ["--threads", str(threads if threads is not None else max(1, host.default_threads() // ranks))]
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
    children: list[Child] = []
    with _signals() as received:
        try:
            for rank in range(ranks):
                environment = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                children.append(_start(rank, arguments, environment, scratch))
            problem = _wait(children, timeout, received)
            if problem:
                raise RankError(problem)
        finally:
            for child in children:
                child.process.kill()  # also ends a stopped process; no effect on one that was reaped
            for child in children:
                child.close()
        _obey(received)  # a signal that arrived at the very end


def _start(rank: int, arguments: list[str], environment: dict[str, str], scratch: Path) -> Child:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    line = ["--launcher", str(os.getpid()), "--line", str(writing)]
    log = (scratch / f"rank_{rank}.log").open("w+b")
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "graphopt.distributed.worker", *arguments, *line],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            pass_fds=(writing,),
        )
    except BaseException:
        os.close(reading)
        log.close()
        raise
    finally:
        os.close(writing)
    return Child(rank, process, log, reading)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Append SIGINT and SIGTERM to the list instead of interrupting anything, so that no child is forgotten.

    Only the main thread may do so; a signal that is ignored, or handled outside Python, keeps its handler.
    """
    received: list[int] = []

    def take(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, take)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _obey(received: list[int]) -> None:
    if received:
        raise KeyboardInterrupt if received[0] == signal.SIGINT else SystemExit(128 + received[0])


def _wait(children: list[Child], timeout: float, received: list[int]) -> str:
    """Wait until all ranks succeeded, or the run failed: then one sentence with the reason."""
    started = time.monotonic()
    start_limit = max(timeout, START_LIMIT)
    failed: list[Child] = []
    deadline = float("inf")
    running = list(children)
    while running:
        _obey(received)
        for child in list(running):
            child.listen()
            code = child.process.poll()
            if code is not None:
                running.remove(child)
            if code:
                failed.append(child)
                deadline = min(deadline, time.monotonic() + (_KILLED_GRACE if code < 0 else _FAILED_GRACE))
        now = time.monotonic()
        if failed:
            # A rank that is silent for longer than the limit will not report any more.
            if now > deadline or all(_silent(child, now, timeout) for child in running):
                break
        elif late := _late(running, now, now - started > start_limit, timeout, start_limit):
            return late
        time.sleep(0.02)
    return _explain(failed) if failed else ""


def _silent(child: Child, now: float, limit: float) -> bool:
    return child.step is Step.RUNNING and now - child.last_heard > limit


def _late(running: list[Child], now: float, start_over: bool, timeout: float, start_limit: float) -> str:
    """A sentence on a rank that did not connect in time, or is silent unnoticed by the other ranks; else empty."""
    starting = [child for child in running if child.step < Step.RUNNING]
    if starting and start_over:
        child = min(starting, key=lambda child: (not child.stopped, child.step))
        state = ", and is stopped" if child.stopped else ""
        return (
            f"{child.name} did not connect to the other ranks within {start_limit:g} s: "
            f"it was {child.step.text}{state}; start the run again, with a longer --timeout if the machine is busy"
        )
    silent = [child for child in running if _silent(child, now, timeout + _SLACK)]
    silent += [child for child in running if child.step is Step.ENDING and now - child.last_heard > start_limit]
    if not silent:
        return ""
    child = min(silent, key=lambda child: child.last_heard)
    seconds = now - child.last_heard
    return f"{child.name} has not answered for {seconds:.0f} s while it was {child.step.text}: start the run again"


def _explain(failed: list[Child]) -> str:
    """One sentence: which rank failed first, and what the others were doing."""
    errors = [child.error() for child in failed]
    for child in failed:
        code = child.process.returncode
        if code < 0:
            seen = next((text for other, text in zip(failed, errors, strict=True) if other is not child and text), "")
            where = f"; {seen}" if seen else f" while it was {child.step.text}: start the run again"
            return f"{child.name} was killed by {_signal_name(-code)}{where}"
    own = [text for text in errors if text]
    first = next((text for text in own if " while rank " not in text), own[0] if own else "")
    return first or f"{failed[0].name} failed with exit code {failed[0].process.returncode}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"  # a real-time signal


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
