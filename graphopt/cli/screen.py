"""Terminal output with rich: tables, and a spinner with the current activity. Imported on terminals only."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

from graphopt.report.document import Block, Facts


def show(blocks: Sequence[Block], out: TextIO) -> None:
    """Print `blocks` in colour, as wide as the terminal."""
    from rich.console import Console

    console = Console(file=out, highlight=False)
    for number, block in enumerate(blocks):
        if number:
            console.print()
        if isinstance(block, str):
            console.print(block, markup=False, soft_wrap=True)
        else:
            if block.title:
                console.print(block.title, style="bold", markup=False)
            console.print(_table(block))


def _table(block: Block) -> object:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    assert not isinstance(block, str)
    if isinstance(block, Facts):
        grid = RichTable.grid(padding=(0, 2))
        grid.add_column(style="cyan", no_wrap=True)
        grid.add_column(overflow="fold")
        for name, value in block.pairs:
            grid.add_row(Text(name), Text(value))
        return grid
    table = RichTable(box=box.SIMPLE_HEAD, header_style="bold cyan", padding=(0, 1), pad_edge=False)
    for name in block.columns:
        number = name in block.right
        table.add_column(Text(name), justify="right" if number else "left", overflow="fold")
    for row in block.rows:
        table.add_row(*map(Text, row))
    return table


@contextlib.contextmanager
def spinner(first: str) -> Iterator[Callable[[str], None]]:
    """A spinner with elapsed seconds on stderr; yields a function that changes its text."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as progress:
        task = progress.add_task(first)
        yield lambda text: progress.update(task, description=text)


@contextlib.contextmanager
def bar() -> Iterator[Callable[[str, int, int | None], None]]:
    """A bar on stderr; yields a function of the text beside it, what is done, and the whole, None if not known.

    Lines that are written to stderr meanwhile stay above it.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        BarColumn(24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as progress:
        task = progress.add_task("", total=None)
        yield lambda text, done, total: progress.update(task, description=text, completed=done, total=total)
