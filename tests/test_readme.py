"""The README is true: its examples run, its commands exist, and the checks run its test command."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^```\n(pip .*)\n```$", README, re.MULTILINE)


def test_two_commands_install_and_show_and_install_and_test() -> None:
    assert len(COMMANDS) == 2
    assert COMMANDS[0] == "pip install . && graphopt demo"
    assert COMMANDS[1].startswith('pip install ".[test]" && pytest')


def test_the_checks_take_the_test_command_from_here() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    (pattern,) = re.findall(r"grep -m 1 '(.*)' README\.md", script)
    found = subprocess.run(["grep", pattern, str(ROOT / "README.md")], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines() == [COMMANDS[1]]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_examples_run(number: int, tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(EXAMPLES[number], encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-P", "example.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for line in re.findall(r"print\(.*\)  # (.*)", EXAMPLES[number]):
        assert line in done.stdout


def test_examples_are_there() -> None:
    assert len(EXAMPLES) == 1


def test_every_command_is_described() -> None:
    from graphopt.cli.app import COMMANDS as commands

    assert set(re.findall(r"`graphopt (\w+)", README)) == set(commands)
    for flag in re.findall(r"`(--[\w-]+)", README):
        if flag == "--extra-index-url":  # of pip
            continue
        sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "graphopt" / "cli").glob("*.py"))
        assert f'"{flag}"' in sources or flag in ("--help",), flag


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
