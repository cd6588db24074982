"""Work of a forked child: a fork takes none of the workers of TVM's pool along, and the pool waits for them forever.

TVM keeps a pool for each thread. What the thread that came through the fork would do, a thread that the child starts
does for it, with a pool of its own.

    parent: session.run(feeds)   os.fork()   child: session.run(feeds)  ->  on a new thread of the child
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

_Result = TypeVar("_Result")
_Given = ParamSpec("_Given")
_survivors: set[int] = set()  # threads that came through a fork
_executors: dict[int, ThreadPoolExecutor] = {}  # by process


@functools.cache
def watch() -> None:
    """From now on, remember which thread comes through a fork."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: _survivors.add(threading.get_ident()))


def living(workload: Callable[[], _Result]) -> _Result:
    """What `workload` gives, done by a thread whose pool has its workers."""
    if threading.get_ident() not in _survivors:
        return workload()
    executor = _executors.get(os.getpid())
    if executor is None:
        executor = _executors[os.getpid()] = ThreadPoolExecutor(1, thread_name_prefix="graphopt-forked")
    return executor.submit(workload).result()


def on_living_thread(function: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
    """`function`, done as `living` does it."""

    @functools.wraps(function)
    def done(*args: _Given.args, **kwargs: _Given.kwargs) -> _Result:
        return living(lambda: function(*args, **kwargs))

    return done
