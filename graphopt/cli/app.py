"""The group of commands: a literal table, loaded by name, and the options that all of them share."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TextIO

import typer
import typer.core
import typer.main

from graphopt.errors import GraphoptError
from graphopt.report.document import Report, plain

COMMANDS = {
    "compile": "Compile a model into an artifact.",
    "run": "Run an artifact.",
    "verify": "Compare a compiled model with ONNX Runtime.",
    "bisect": "Find the pass that broke a model, in the dumps of `compile --dump`.",
    "passes": "List the passes and their options.",
    "models": "List the models of the zoo.",
    "bench": "Time models beside ONNX Runtime.",
    "tune": "Search wider for the tiles of a model's hottest kernels.",
    "cache": "Show what is kept of earlier compilations, and remove it.",
    "report": "Show what is in an artifact.",
    "plan": "Show where memory goes, and make a program fit into a budget.",
    "compress": "Store a model in few bytes.",
    "decompress": "Write a compressed model as ONNX again.",
    "inspect": "Show how sparse a model's weights are.",
    "prune": "Leave weights out of a model.",
    "train": "Train a model on data.",
    "demo": "Compile, check, time and distribute a real model.",
}
"""Command -> one line of help; `graphopt.cli.NAME` holds the function `command` and its `EXAMPLES`."""

ABOUT = "A graph compiler: an ONNX model goes in, a verified program of generated kernels comes out."


class OutputError(GraphoptError):
    """Stdout cannot be written."""


@dataclass(slots=True)
class Invocation:
    """One run of the command line: the output stream, and the options that every command has."""

    out: TextIO
    json: bool = False
    debug: bool = False

    @property
    def terminal(self) -> bool:
        """Whether stdout is a terminal and the results are not JSON."""
        return self.out.isatty() and not self.json

    def print(self, text: str) -> None:
        """Print a part of the result.

        Raises:
            GraphoptError: stdout cannot be written; a closed pipe stays a BrokenPipeError.
        """
        self._write(lambda: print(text, file=self.out, flush=True))  # noqa: T201

    def _write(self, write: Callable[[], object]) -> None:
        try:
            write()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(
                f"stdout cannot be written: {error.strerror or error}; send it to a place with space"
            ) from error

    def show(self, report: Report) -> int:
        """Print the result of a command; returns the exit code."""
        if self.json:
            self.print(json.dumps(report.document, indent=2, allow_nan=False))
        elif self.terminal:
            from graphopt.cli.screen import show

            self._write(lambda: show(report.blocks, self.out))
        elif text := plain(report.blocks):
            self.print(text)
        return 1 if report.failed else 0


class _Command(typer.core.TyperCommand):
    def invoke(self, ctx: Any) -> Any:
        """Run the command; output of libraries goes to stderr, so that stdout holds only the result."""
        with contextlib.redirect_stdout(sys.stderr):
            try:
                report = super().invoke(ctx)
            except BrokenPipeError:
                raise
            except OSError as error:
                from graphopt.runtime import files

                raise GraphoptError(files.sentence(error)) from error
        return ctx.obj.show(report) if isinstance(report, Report) else 0


class _Group(typer.core.TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        """The commands in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Load one command; for an unknown name all of them, so that similar names can be suggested."""
        for name in [cmd_name] if cmd_name in COMMANDS else COMMANDS:
            if name not in self.commands:
                self.commands[name] = _load(name)
        return self.commands.get(cmd_name)


def _set_json(ctx: typer.Context, value: bool) -> None:
    ctx.obj.json = value


def _set_debug(ctx: typer.Context, value: bool) -> None:
    ctx.obj.debug = value


def _shared(
    json: Annotated[
        bool, typer.Option("--json", callback=_set_json, expose_value=False, help="Print one JSON document.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", callback=_set_debug, expose_value=False, help="Show tracebacks of errors.")
    ] = False,
) -> None:
    """Options that reach the Invocation instead of the command's function."""


def _app() -> typer.Typer:
    # Boxes and colours on terminals only; pipes and files get plain text.
    return typer.Typer(add_completion=False, rich_markup_mode="rich" if sys.stdout.isatty() else None)


def _load(name: str) -> Any:
    module = importlib.import_module(f"graphopt.cli.{name}")
    app = _app()
    examples = "\n\n".join(f"Example: {line}" for line in module.EXAMPLES)
    settings = {"help_option_names": ["--help", "-h"]}
    app.command(name, cls=_Command, help=module.command.__doc__, epilog=examples, context_settings=settings)(
        module.command
    )
    command = typer.main.get_command(app)
    command.short_help = COMMANDS[name]
    shared = _app()
    shared.command()(_shared)
    command.params += typer.main.get_command(shared).params
    return command


def _show_version(ctx: typer.Context, value: bool) -> None:
    if value:
        from graphopt.version import VERSION

        ctx.obj.print(f"graphopt {VERSION}")
        raise typer.Exit


def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before the command."""


def build() -> Any:
    """The command line as one click command."""
    app = _app()
    settings = {"help_option_names": ["--help", "-h"]}
    app.callback(cls=_Group, help=ABOUT, no_args_is_help=True, context_settings=settings)(_main)
    return typer.main.get_command(app)
