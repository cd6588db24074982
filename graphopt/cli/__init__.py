"""The command line: `graphopt COMMAND ...`, one file per command, each loaded by name when it is used.

Exit codes: 0 success, 1 an error (one sentence on stderr), 2 wrong usage, 130 interrupted, 141 the reader went away.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from graphopt.errors import GraphoptError, Interrupted

if TYPE_CHECKING:
    from graphopt.cli.app import Invocation

__all__ = ["main"]

ERROR, USAGE, INTERRUPTED, PIPE_CLOSED = 1, 2, 130, 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command with `arguments` (default: those of the process); returns the exit code."""
    if sys.stderr is None:  # closed by the parent process; libraries write to it without checking
        with open(os.devnull, "w", encoding="utf-8") as null, contextlib.redirect_stderr(null):
            return main(arguments)
    if sys.stdout is None:
        return _say("stdout is closed, and the result goes there; open it, or send it to a file", ERROR)
    invocation: Invocation | None = None
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for names that the terminal's encoding lacks
    try:
        from graphopt.cli import app

        invocation = app.Invocation(sys.stdout)
        code = app.build().main(
            args=None if arguments is None else list(arguments),
            prog_name="graphopt",
            standalone_mode=False,
            obj=invocation,
        )
        sys.stdout.flush()
        if code == INTERRUPTED:  # the argument parser turns Ctrl-C into an exit without a message
            return _say("interrupted", INTERRUPTED)
    except BrokenPipeError:
        _drop_output()
        return PIPE_CLOSED
    except OSError as error:  # outside the commands only stdout is written
        if invocation is not None and invocation.debug:
            raise
        code = _say(f"stdout cannot be written: {error.strerror or error}; send it to a place with space", ERROR)
        _drop_output()
    except KeyboardInterrupt:
        return _say("interrupted", INTERRUPTED)
    except SystemExit as error:  # the library's answer to a closed pipe
        _drop_output()
        return error.code if isinstance(error.code, int) else ERROR
    except Exception as error:
        if invocation is not None and invocation.debug:
            raise
        code = _failed(error)
        if _output_failed(error):
            _drop_output()
    return code if isinstance(code, int) else 0


def _failed(error: Exception) -> int:
    """Print the error as one sentence; returns the exit code."""
    if type(error).__name__ == "NoArgsIsHelpError":  # `graphopt` alone: the message is the help
        if text := str(error).strip("\n"):  # with colours it is already on the terminal
            with contextlib.suppress(OSError):
                print(text, file=sys.stderr)  # noqa: T201
        return USAGE
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # a usage error of the argument parser
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "graphopt"
        sentence = str(error.format_message()).rstrip(".").replace("\n", " ")
        return _say(f"{sentence}; see `{command} --help`", USAGE)
    if isinstance(error, GraphoptError):
        return _say(str(error), INTERRUPTED if isinstance(error, Interrupted) else ERROR)
    if isinstance(error, MemoryError):
        return _say("there is not enough memory for this: take a smaller model or batch", ERROR)
    if isinstance(error, ModuleNotFoundError) and str(error.name).startswith("graphopt."):
        return _say("this folder holds graphopt's source, which hides the installation: work in another one", ERROR)
    kind = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return _say(f"this is a bug in graphopt ({' '.join(kind.split())[:300]}); run it again with --debug", ERROR)


def _output_failed(error: Exception) -> bool:
    from graphopt.cli.app import OutputError

    return isinstance(error, OutputError)


def _say(sentence: str, code: int) -> int:
    try:
        print(f"graphopt: {sentence}", file=sys.stderr)  # noqa: T201
    except OSError:
        _drop_output()
    return code


def _drop_output() -> None:
    """Redirect the interpreter's last flush to nowhere, so that it does not report the closed pipe."""
    null = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(null, descriptor)
    os.close(null)
