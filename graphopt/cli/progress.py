"""Progress of long work: a spinner on a terminal, nothing elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress(first: str) -> Iterator[Callable[[str], None]]:
    """Shows `first` on stderr; yields a function that changes the text."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from graphopt.cli.screen import spinner

    with spinner(first) as update:
        yield update
