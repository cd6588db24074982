"""Runs in a forked child: a fork copies none of the threads of TVM's pool, and the pool would wait for them forever.

TVM keeps one pool per thread. The work of the thread that came through the fork is done by a new thread of the child,
with a pool of its own.

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
    """Register a fork handler that records which thread comes through a fork."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: _survivors.add(threading.get_ident()))


def living(workload: Callable[[], _Result]) -> _Result:
    """The result of `workload`, run on a thread whose pool has its threads."""
    if threading.get_ident() not in _survivors:
        return workload()
    executor = _executors.get(os.getpid())
    if executor is None:
        executor = _executors[os.getpid()] = ThreadPoolExecutor(1, thread_name_prefix="graphopt-forked")
    return executor.submit(workload).result()


def on_living_thread(function: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
    """`function`, run by `living`."""

    @functools.wraps(function)
    def done(*args: _Given.args, **kwargs: _Given.kwargs) -> _Result:
        return living(lambda: function(*args, **kwargs))

    return done
