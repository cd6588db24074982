"""BENCHMARKS.md says what was measured, and README.md what BENCHMARKS.md says."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def measure() -> Any:
    spec = importlib.util.spec_from_file_location("benchmarks_measure", ROOT / "benchmarks" / "measure.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_was_measured(measure: Any) -> None:
    assert (ROOT / "BENCHMARKS.md").read_text(encoding="utf-8") == measure.page()


def test_nothing_is_kept_that_the_page_does_not_show(measure: Any) -> None:
    assert {file.stem for file in (ROOT / "benchmarks" / "cpu").glob("*.json")} <= set(measure.TABLES)


def test_what_was_measured_was_measured_by_the_command_above_it(measure: Any) -> None:
    for file in (ROOT / "benchmarks" / "cpu").glob("*.json"):
        assert json.loads(file.read_text(encoding="utf-8"))["command"] == measure.TABLES[file.stem].command


def test_the_table_of_the_readme_is_the_page_s(measure: Any) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (shown,) = [block for block in readme.split("```\n") if block.startswith("model  ")]
    assert shown in measure.table(json.loads((ROOT / "benchmarks/cpu/light.json").read_text())["document"]) + "\n"


def test_help_is_help(measure: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert measure.main(["--help"]) == 0
    assert "Tables: light, " in capsys.readouterr().out


def test_an_unknown_table_is_named(measure: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert measure.main(["lihgt"]) == 2
    assert "there is no table lihgt; there are light" in capsys.readouterr().err


def test_the_commands_are_of_this_command_line(measure: Any) -> None:
    from graphopt.bench.peers import PEERS
    from graphopt.models import names

    for entry in measure.TABLES.values():
        words = entry.command.split()
        assert words[0] in ("graphopt", "python")
        assert {word.removeprefix("zoo:") for word in words if word.startswith("zoo:")} <= set(names())
        options = {"--peer": PEERS, "--suite": [each.value for each in _suites()]}
        for option, known in options.items():
            assert all(words[at + 1] in known for at, word in enumerate(words) if word == option)


def _suites() -> Any:
    from graphopt.cli.bench import Suite

    return Suite
