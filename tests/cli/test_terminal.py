"""What a person sees on a terminal, and what a pipe gets instead."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest


def _on_terminal(*arguments: str) -> str:
    """stdout and stderr of graphopt on a pseudo terminal."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "graphopt", *arguments], stdout=follower, stderr=follower, env=environment
    )
    os.close(follower)
    parts = []
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # the last holder of the other end is gone
            break
        if not part:
            break
        parts.append(part)
    os.close(leader)
    assert process.wait() == 0
    return b"".join(parts).decode()


def test_terminal_gets_colour_and_a_pipe_does_not() -> None:
    assert "\x1b[" in _on_terminal("models")
    piped = subprocess.run(
        [sys.executable, "-P", "-m", "graphopt", "models"], capture_output=True, text=True, check=True
    )
    assert "\x1b" not in piped.stdout
    assert piped.stderr == ""


def test_json_is_plain_even_on_a_terminal() -> None:
    assert "\x1b" not in _on_terminal("passes", "--json")


def test_progress_is_shown_on_a_terminal_only(tiny: Path, tmp_path: Path) -> None:
    arguments = ("compile", str(tiny), "-o", str(tmp_path / "t.gopt"))
    assert "reading the model" in _on_terminal(*arguments)
    piped = subprocess.run(
        [sys.executable, "-P", "-m", "graphopt", *arguments], capture_output=True, text=True, check=True
    )
    assert piped.stderr == ""
    assert "reading the model" not in piped.stdout


def test_a_narrow_terminal_loses_no_character(monkeypatch: pytest.MonkeyPatch) -> None:
    from graphopt.cli.screen import show
    from graphopt.report.document import Table

    monkeypatch.setenv("COLUMNS", "30")
    out = io.StringIO()
    cells = ("seeded/squeezenet", "5.14 [4.67, 5.31]", "1.79 [1.44, 2.01]")
    show([Table(("aaa", "bbb", "ccc"), (cells,), right=("bbb", "ccc"))], out)
    shown = Counter(out.getvalue().replace("─", ""))
    assert shown["…"] == 0
    assert all(shown[each] == count for each, count in Counter("".join(cells)).items() if each in "[]0123456789/")
