"""Measured costs of this machine, in one SQLite file in the user's cache directory.

A row is one workload with one tile, measured on one processor with a number of threads, for code of one target and one
TVM version: everything that changes the seconds is part of the key, so old rows are never wrong, only unused.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphopt.cost.workload import Timing
from graphopt.errors import GraphoptError

_SCHEMA = """
create table if not exists costs (
    context text not null, work text not null, tile text not null,
    seconds real not null, low real not null, high real not null, measured real not null,
    primary key (context, work, tile)
) without rowid;
create table if not exists contexts (context text primary key, description text not null) without rowid;
"""
_WAIT_SECONDS = 10.0  # a writer holds the file for milliseconds


@dataclass(frozen=True, slots=True)
class Context:
    """What all rows of a table share: processor, threads, target, versions, kernel sources."""

    facts: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, facts: Mapping[str, str]) -> Context:
        """The context of named facts, in any order."""
        return cls(tuple(sorted(facts.items())))

    @property
    def description(self) -> str:
        """The facts as JSON."""
        return json.dumps(dict(self.facts), sort_keys=True)

    @property
    def key(self) -> str:
        """A digest of the facts: 24 hexadecimal digits of SHA-256."""
        return hashlib.sha256(self.description.encode()).hexdigest()[:24]


def default_path() -> Path:
    """The path of the table in the user's cache directory."""
    from platformdirs import user_cache_path

    return user_cache_path("graphopt") / "costs.sqlite"


class CostTable:
    """The rows of one context. Several processes may use the same file."""

    def __init__(self, path: Path, context: Context) -> None:
        """Open or create the table.

        Raises:
            GraphoptError: the file cannot be opened, or is no cost table.
        """
        self.path = path
        self._context = context.key
        with self._errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._connection() as connection:
                connection.executescript(_SCHEMA)
                connection.execute("insert or ignore into contexts values (?, ?)", (context.key, context.description))

    def get(self, work: str) -> dict[str, Timing]:
        """Timings of a workload by tile."""
        with self._errors(), self._connection() as connection:
            rows = connection.execute(
                "select tile, seconds, low, high from costs where context = ? and work = ?", (self._context, work)
            ).fetchall()
        if not all(_possible(tile, numbers) for tile, *numbers in rows):
            raise GraphoptError(
                f"the cost table {self.path.name} holds no costs; delete {self.path} to start a new one"
            )
        return {tile: Timing(seconds, low, high, tile) for tile, seconds, low, high in rows}

    def put(self, rows: Iterable[tuple[str, Timing]]) -> None:
        """Add or replace (workload key, timing) rows, all or none."""
        now = time.time()
        values = [(self._context, work, t.tile, t.seconds, t.low, t.high, now) for work, t in rows]
        with self._errors(), self._connection() as connection:
            connection.executemany("insert or replace into costs values (?, ?, ?, ?, ?, ?, ?)", values)

    def __len__(self) -> int:
        """Number of rows of this context."""
        with self._errors(), self._connection() as connection:
            (count,) = connection.execute("select count(*) from costs where context = ?", (self._context,)).fetchone()
        return int(count)

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(self.path, timeout=_WAIT_SECONDS)
        try:
            with connection:  # commits, or rolls back
                yield connection
        finally:
            connection.close()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            damaged = isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)
            advice = (
                f"delete {self.path} to start a new one" if damaged else "try again, or compile with --costs roofline"
            )
            raise GraphoptError(f"the cost table {self.path} cannot be used ({error}); {advice}") from error


def _possible(tile: Any, numbers: Sequence[Any]) -> bool:
    """Whether a row can be a timing: another program may have written to the file."""
    return isinstance(tile, str) and all(isinstance(n, float) and 0 <= n < math.inf for n in numbers)
