"""Ctrl-C and SIGTERM while a training runs: the step is finished first. A second one acts at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass

_WORDS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


@dataclass(slots=True)
class Stop:
    """Whether somebody asked to stop, and how."""

    asked: str = ""


@contextlib.contextmanager
def stopping() -> Iterator[Stop]:
    """Catch both signals inside the block; outside of the main thread, which alone gets signals, nothing is caught."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in _WORDS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, _: object) -> None:
        stop.asked = _WORDS[signal.Signals(number)]
        restore()
        for each in (each for each, handler in before.items() if handler is signal.SIG_IGN):  # of a background job
            signal.signal(each, signal.default_int_handler if each is signal.SIGINT else signal.SIG_DFL)

    try:
        for number in _WORDS:
            signal.signal(number, note)
        yield stop
    finally:
        restore()
