"""The next batches are made in a thread while a step runs."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

Item = TypeVar("Item")

_PATIENCE = 0.05
"""Seconds after which the thread looks whether anybody still waits for its batches."""
_FAREWELL = 5.0
"""Seconds that the consumer waits for the thread to end; one that hangs in a foreign loader is left behind."""


class _End:
    """Follows the last item."""


class _Failure:
    """What the thread raised, for the consumer."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def prefetch(items: Iterator[Item], depth: int = 2) -> Iterator[Item]:
    """The same items, of which up to `depth` are made ahead in a thread of their own.

    An error of the thread is raised where its item would have come. The thread ends when the consumer closes the
    generator or leaves it with an exception, Ctrl-C included.
    """
    ready: queue.Queue[Item | _End | _Failure] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: Item | _End | _Failure) -> None:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=_PATIENCE)
                return

    def work() -> None:
        try:
            for item in items:
                put(item)
                if stopped.is_set():
                    return
            put(_End())
        except BaseException as error:  # noqa: B036 - it is raised by the consumer
            put(_Failure(error))
        finally:
            if (close := getattr(items, "close", None)) is not None:
                close()

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            found = ready.get()
            if isinstance(found, _End):
                return
            if isinstance(found, _Failure):
                raise found.error
            yield found
    finally:
        stopped.set()
        thread.join(_FAREWELL)
