"""The result of a command: one JSON document for programs, and blocks of text and tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells. Columns named in `right` are numbers and are right-aligned."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    right: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Facts:
    """Names and values, one pair per line."""

    pairs: tuple[tuple[str, str], ...]
    title: str = ""


Block = str | Table | Facts


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a command. `document` holds JSON values; a `failed` one ends the command with exit code 1."""

    document: Mapping[str, Any]
    blocks: Sequence[Block] = ()
    failed: bool = False


def plain(blocks: Sequence[Block]) -> str:
    """The blocks as aligned text without colour, separated by empty lines."""
    return "\n\n".join(text for block in blocks if (text := _plain(block)))


def _plain(block: Block) -> str:
    if isinstance(block, str):
        return block
    if isinstance(block, Facts):
        width = max((len(name) for name, _ in block.pairs), default=0)
        lines = [f"{name.ljust(width)}  {value}".rstrip() for name, value in block.pairs]
    else:
        lines = _aligned(block)
    return "\n".join([block.title, *lines] if block.title else lines)


def _aligned(table: Table) -> list[str]:
    rows = [table.columns, *table.rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(table.columns))]
    right = [name in table.right for name in table.columns]
    return [
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in rows
    ]
