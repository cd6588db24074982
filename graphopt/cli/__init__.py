"""The command line: `graphopt COMMAND ...`, one file per command, each loaded by name when it is used.

Exit codes: 0 success, 1 an error (one sentence on stderr), 2 wrong usage, 130 interrupted, 141 the reader went away.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from graphopt.errors import GraphoptError

if TYPE_CHECKING:
    from graphopt.cli._app import Invocation

__all__ = ["main"]

ERROR, USAGE, INTERRUPTED, PIPE_CLOSED = 1, 2, 130, 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command with `arguments` (default: those of the process); the result is the exit code."""
    invocation: Invocation | None = None
    try:
        from graphopt.cli import _app

        invocation = _app.Invocation(sys.stdout)
        code = _app.build().main(
            args=None if arguments is None else list(arguments),
            prog_name="graphopt",
            standalone_mode=False,
            obj=invocation,
        )
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
        return PIPE_CLOSED
    except KeyboardInterrupt:
        return _say("interrupted", INTERRUPTED)
    except SystemExit as error:  # how the library answers a closed pipe
        _drop_output()
        return error.code if isinstance(error.code, int) else ERROR
    except Exception as error:
        if invocation is not None and invocation.debug:
            raise
        return _failed(error)
    return code if isinstance(code, int) else 0


def _failed(error: Exception) -> int:
    """Say what went wrong in a sentence; the exit code."""
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # a usage error of the argument parser
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "graphopt"
        sentence = str(error.format_message()).rstrip(".").replace("\n", " ")
        return _say(f"{sentence}; see `{command} --help`", USAGE)
    if isinstance(error, GraphoptError):
        return _say(str(error), ERROR)
    if isinstance(error, OSError) and error.filename is not None:
        return _say(f"{error.filename} cannot be used: {error.strerror}", ERROR)
    if isinstance(error, MemoryError):
        return _say("there is not enough memory for this: take a smaller model or batch", ERROR)
    kind = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return _say(f"this is a bug in graphopt ({' '.join(kind.split())[:300]}); run it again with --debug", ERROR)


def _say(sentence: str, code: int) -> int:
    try:
        print(f"graphopt: {sentence}", file=sys.stderr)  # noqa: T201
    except OSError:
        _drop_output()
    return code


def _drop_output() -> None:
    """Let the interpreter's last flush go nowhere, instead of complaining that the reader is gone."""
    null = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(null, descriptor)
    os.close(null)
