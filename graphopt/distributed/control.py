"""The line between the launcher and each worker: how far the worker is, that it lives, and that the launcher does.

The ranks watch each other only once they are connected (see `watch`). Before that, and when no rank is left that could
notice, only the launcher can. So each worker writes a letter into a pipe for every step of its start, and then one per
beat. The other way the kernel does it: a worker is killed when its launcher ends, however that ends.
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
    """How far a worker is; it only goes forward."""

    LOADING = ord("a")
    MEETING = ord("b")
    RUNNING = ord("c")
    ENDING = ord("d")

    @property
    def text(self) -> str:
        """For messages: `rank 1 was killed while it was ...`."""
        return {
            Step.LOADING: "starting and loading its libraries",
            Step.MEETING: "connecting to the other ranks",
            Step.RUNNING: "running",
            Step.ENDING: "ending",
        }[self]


class Reporter:
    """The worker's end of the line. Without a pipe (a worker that torchrun started) it does nothing."""

    def __init__(self, pipe: int | None) -> None:
        self._pipe = pipe
        if pipe is not None:
            os.set_blocking(pipe, False)

    def report(self, step: Step) -> None:
        """Tell the launcher; called again with the same step it is a beat."""
        if self._pipe is None:
            return
        try:
            os.write(self._pipe, bytes([step]))
        except BlockingIOError:
            pass  # full: the launcher is stopped, and has enough to read when it goes on
        except BrokenPipeError:
            os._exit(1)  # the launcher is gone, and nobody waits for the result


def end_with(parent: int) -> None:
    """Let the kernel kill this process when its parent, the process `parent`, ends."""
    library = ctypes.CDLL(None, use_errno=True)
    if hasattr(library, "prctl"):
        library.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != parent:
        os._exit(1)  # it ended before the request was made


@dataclass
class Child:
    """The launcher's end: one worker process, its log, and what it said last."""

    rank: int
    process: subprocess.Popen[bytes]
    log: BinaryIO
    pipe: int
    step: Step = Step.LOADING
    heard: float = field(default_factory=time.monotonic)

    def listen(self) -> None:
        """Take what the worker wrote since the last call."""
        try:
            data = os.read(self.pipe, 4096)
        except BlockingIOError:
            return
        if data:
            self.step = max(self.step, Step(max(data)))
            self.heard = time.monotonic()

    @property
    def name(self) -> str:
        return f"rank {self.rank} (stage {self.rank})"

    @property
    def stopped(self) -> bool:
        """Whether somebody sent it SIGSTOP or the like (proc(5): state T)."""
        try:
            return Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        except (OSError, IndexError):
            return False

    def error(self) -> str:
        """The sentence the worker ended with, or the last line of a traceback; empty if it said nothing."""
        self.log.seek(0)
        lines = [line.strip() for line in self.log.read().decode(errors="replace").splitlines() if line.strip()]
        found = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return found[0] if found else (lines[-1] if lines else "")

    def close(self) -> None:
        """Reap the process, which was killed or has ended."""
        self.process.wait()
        os.close(self.pipe)
        self.log.close()
