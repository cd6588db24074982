"""Control channel between the launcher and each worker: progress, heartbeats, and termination with the launcher.

The ranks watch each other only once they are connected (see `watch`). Before that, and when no rank is left to notice a
failure, only the launcher can. So each worker writes one byte into a pipe for every step of its start, and then one per
heartbeat. In the other direction the kernel helps: it kills a worker when its launcher ends, however that ends.
"""

from __future__ import annotations

import ctypes
import enum
import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Step(enum.IntEnum):
    """Progress of a worker; it only increases."""

    LOADING = ord("a")
    MEETING = ord("b")
    RUNNING = ord("c")
    ENDING = ord("d")

    @property
    def text(self) -> str:
        """Phrase for messages: `rank 1 was killed while it was ...`."""
        return {
            Step.LOADING: "starting and loading its libraries",
            Step.MEETING: "connecting to the other ranks",
            Step.RUNNING: "running",
            Step.ENDING: "ending",
        }[self]


class Reporter:
    """The worker's end of the pipe. Without a pipe (a worker that torchrun started) it does nothing."""

    def __init__(self, pipe: int | None) -> None:
        """Args: pipe: file descriptor of the writing end; None reports nothing."""
        self._pipe = pipe
        if pipe is not None:
            os.set_blocking(pipe, False)

    def report(self, step: Step) -> None:
        """Report a step to the launcher; repeating the same step is a heartbeat."""
        if self._pipe is None:
            return
        try:
            os.write(self._pipe, bytes([step]))
        except BlockingIOError:
            pass  # the pipe is full: the launcher is stopped, and has enough to read when it continues
        except BrokenPipeError:
            os._exit(1)  # the launcher is gone: no process waits for the result


def end_with(parent: int) -> None:
    """Ask the kernel to kill this process when its parent, the process `parent`, ends."""
    library = ctypes.CDLL(None, use_errno=True)
    if hasattr(library, "prctl"):
        library.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != parent:
        os._exit(1)  # the parent ended before the request


@dataclass
class Child:
    """The launcher's end: one worker process, its log, and its last reported step."""

    rank: int
    process: subprocess.Popen[bytes]
    log: BinaryIO
    pipe: int
    step: Step = Step.LOADING
    last_heard: float = field(default_factory=time.monotonic)

    def listen(self) -> None:
        """Read what the worker wrote since the last call."""
        try:
            data = os.read(self.pipe, 4096)
        except BlockingIOError:
            return
        if data:
            self.step = max(self.step, Step(max(data)))
            self.last_heard = time.monotonic()

    @property
    def name(self) -> str:
        """The rank and stage, for messages."""
        return f"rank {self.rank} (stage {self.rank})"

    @property
    def stopped(self) -> bool:
        """Whether the process is stopped, by SIGSTOP for example (proc(5): state T)."""
        try:
            return Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        except (OSError, IndexError):
            return False

    def error(self) -> str:
        """The error that the worker ended with, or the last line of its traceback; empty if its log is."""
        self.log.seek(0)
        lines = [line.strip() for line in self.log.read().decode(errors="replace").splitlines() if line.strip()]
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return errors[0] if errors else (lines[-1] if lines else "")

    def close(self) -> None:
        """Reap the process, which was killed or has exited."""
        self.process.wait()
        os.close(self.pipe)
        self.log.close()
