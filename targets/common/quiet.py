"""Suppresses TVM's warnings, which concern its own code; TVM has no log level that silences them."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import warnings
from collections.abc import Iterator

_WARNING = re.compile(rb"\[\d\d:\d\d:\d\d\] [^\n]*: Warning: ")

_lock = threading.RLock()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within the block, lines that TVM's logger writes to stderr as warnings are dropped, and Python's are ignored.

    The file descriptor itself is redirected to memory, since the logger is C++. Everything else that was written to
    it is replayed when the block ends. Blocks of several threads run one after another.
    """
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            saved = os.dup(2)
        except OSError:  # closed: nothing reaches anybody
            yield
            return
        held = os.memfd_create("stderr")
        os.dup2(held, 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            _replay(held)


def _replay(held: int) -> None:
    """Write the captured lines to stderr, without TVM's warnings."""
    with open(held, "rb") as file:
        file.seek(0)
        lines = file.read().splitlines(keepends=True)
    for line in lines:
        if not _WARNING.match(line):
            with contextlib.suppress(OSError):
                os.write(2, line)
