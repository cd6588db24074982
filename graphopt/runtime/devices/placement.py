"""Placement of the workers of TVM's pool: not on the core of the thread that they work for.

Linux mostly wakes a worker on the core of the waking thread, though another core is idle. Both then spin and yield to
each other, a kernel takes as long as on one thread, and milliseconds pass, hundreds of small kernels, before the
scheduler moves one of them. So the first run after a pause keeps its workers off its own core until they are awake,
unless other threads are running: a worker that shares a core with one of those waits for entire time slices.

    before a run after a pause     worker may run on {0, 1}  ->  {1}        the thread runs on 0
    after that run                 worker may run on {1}     ->  {0, 1}
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

PAUSE = 0.004
"""Seconds without a run after which workers sleep, or are about to (`library.runtime`)."""

_TASKS = Path("/proc/self/task")
_LOAD = Path("/proc/loadavg")
_pools = threading.local()


def started_by(create: Callable[[], object]) -> None:
    """Call `create`, which starts the pool of the current thread unless it has one, and record the new threads."""
    if getattr(_pools, "workers", None) is not None:
        create()
        return
    before = _tasks()
    create()
    _pools.workers, _pools.process = sorted(_tasks() - before), os.getpid()


def _workers() -> list[int]:
    """Worker threads of the current thread's pool; none after a fork, because they belong to the parent."""
    known: list[int] = getattr(_pools, "workers", None) or []
    return known if known and _pools.process == os.getpid() else []


def _tasks() -> set[int]:
    with contextlib.suppress(OSError):
        return {int(name) for name in os.listdir(_TASKS)}
    return set()  # not Linux


class Placement:
    """Placement of the workers of the current thread's pool, for a session with a number of threads."""

    def __init__(self, threads: int) -> None:
        """Args: threads: the current thread and its workers."""
        self._threads = threads
        self._last = 0.0
        self._moved: dict[int, set[int]] = {}

    def begin(self) -> None:
        """Before a run: after a pause, keep workers off this core."""
        if self._threads < 2 or time.perf_counter() - self._last < PAUSE:
            return
        core = _this_core()
        if core is None or _running() + self._threads - 1 > len(os.sched_getaffinity(0)):
            return
        for worker in _workers():
            with contextlib.suppress(OSError):  # the thread has ended, or may not be moved
                allowed = os.sched_getaffinity(worker)
                if core in allowed and len(allowed) > 1:
                    os.sched_setaffinity(worker, allowed - {core})
                    self._moved[worker] = allowed

    def end(self) -> None:
        """After a run: allow every core again."""
        for worker, allowed in self._moved.items():
            with contextlib.suppress(OSError):
                os.sched_setaffinity(worker, allowed)
        self._moved.clear()
        self._last = time.perf_counter()


@functools.cache
def _getcpu() -> Callable[[], int] | None:
    function: Callable[[], int] | None = getattr(ctypes.CDLL(None), "sched_getcpu", None)
    return function if hasattr(os, "sched_setaffinity") else None


def _this_core() -> int | None:
    call = _getcpu()
    return None if call is None else call()


def _running() -> int:
    """Threads of the machine that run or wait for a core now, the current one included."""
    try:
        return int(_LOAD.read_text().split()[3].partition("/")[0])
    except (OSError, ValueError, IndexError):
        return 1 << 20
