"""The command line itself: help, wrong usage, errors, interruptions, closed pipes."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from graphopt.cli import app, main
from graphopt.errors import GraphoptError

Cli = Callable[..., Any]


def test_help_names_every_command(graphopt: Cli) -> None:
    result = graphopt("--help")
    assert result.code == 0
    for name, summary in app.COMMANDS.items():
        assert name in result.out
        assert summary.split()[0] in result.out


@pytest.mark.parametrize("name", app.COMMANDS)
def test_help_of_a_command_has_an_example_and_the_shared_flags(graphopt: Cli, name: str) -> None:
    result = graphopt(name, "--help")
    assert result.code == 0
    assert f"Example: graphopt {name}" in result.out or "&& graphopt bisect" in result.out.replace("\n", " ")
    assert "--json" in result.out
    assert "--debug" in result.out
    assert "\x1b" not in result.out


def test_version(graphopt: Cli) -> None:
    from graphopt import __version__

    assert graphopt("--version").out == f"graphopt {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compil", "x"], "Did you mean 'compile'?"),
        (["compile"], "MODEL"),
        (["compile", "--foo"], "--foo"),
        (["run", "a.gopt", "--threads", "0"], "--threads"),
        (["compile", "m.onnx", "--verify", "sometimes"], "--verify"),
        (["bench"], "--suite"),
        (["run", "a.gopt", "--timeout", "inf"], "86400"),
        (["run", "a.gopt", "--timeout", "nan"], "86400"),
        (["run", "a.gopt", "--timeout", "1e12"], "86400"),
        (["run", ""], "the path is empty"),
        (["compile", ""], "the path is empty"),
        (["compile", "m.onnx", "-o", ""], "the path is empty"),
        (["compile", "m.onnx", "--dump", ""], "the path is empty"),
        (["bench", ""], "the path is empty"),
        (["compile", "m.onnx", "--costs", ""], "the path is empty"),
    ],
)
def test_wrong_usage_is_two(graphopt: Cli, arguments: list[str], words: str) -> None:
    result = graphopt(*arguments)
    assert result.code == 2
    assert result.out == ""
    assert words in result.err
    assert "--help`" in result.err


def _replace(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def command() -> None:
        raise error

    monkeypatch.setattr(importlib.import_module("graphopt.cli.passes"), "command", command)


def test_an_error_is_one_sentence(graphopt: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    _replace(monkeypatch, GraphoptError("node a is bad; change it"))
    result = graphopt("passes")
    assert (result.code, result.out, result.err) == (1, "", "graphopt: node a is bad; change it\n")


def test_a_checkout_that_hides_the_package_is_no_bug(graphopt: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    _replace(monkeypatch, ModuleNotFoundError("No module named 'graphopt.passes'", name="graphopt.passes"))
    result = graphopt("passes")
    assert result.code == 1
    assert "this folder holds graphopt's source, which hides the installation" in result.err


def test_a_bug_says_so(graphopt: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    _replace(monkeypatch, ValueError("first\nsecond"))
    result = graphopt("passes")
    assert result.code == 1
    assert result.err == "graphopt: this is a bug in graphopt (ValueError: first second); run it again with --debug\n"


def test_debug_shows_the_traceback(graphopt: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    _replace(monkeypatch, ValueError("inner"))
    with pytest.raises(ValueError, match="inner"):
        graphopt("passes", "--debug")


def test_an_interruption_is_130(graphopt: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    _replace(monkeypatch, KeyboardInterrupt())
    result = graphopt("passes")
    assert (result.code, result.err) == (130, "graphopt: interrupted\n")


def test_a_missing_file_is_named(graphopt: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    _replace(monkeypatch, FileNotFoundError(2, "No such file or directory", "gone.bin"))
    result = graphopt("passes")
    sentence = "graphopt: gone.bin cannot be used: No such file or directory; check that it exists\n"
    assert (result.code, result.err) == (1, sentence)


def test_a_full_disk_without_a_name(graphopt: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    _replace(monkeypatch, OSError(28, "No space left on device"))
    result = graphopt("passes")
    assert result.code == 1
    assert result.one_sentence
    assert "No space left on device" in result.err
    assert "TMPDIR" in result.err
    assert "bug" not in result.err


def test_names_that_the_alphabet_of_the_output_has_not(tmp_path: Path) -> None:
    text = '<ir_version: 10, opset_import: ["": 20]> g (float[3] x) => (float[3] y) { y = Abs(x) }'
    model = onnx.parser.parse_model(text)
    onnx.save(model, tmp_path / "\u00fc.onnx")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = _process("compile", "\u00fc.onnx", "-o", "u.gopt", cwd=tmp_path, stdout=subprocess.PIPE, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("\\xfc.onnx\n")


def _process(*arguments: str, **streams: Any) -> subprocess.CompletedProcess[str]:
    given = {"stderr": subprocess.PIPE, **streams}
    return subprocess.run([sys.executable, "-P", "-m", "graphopt", *arguments], text=True, check=False, **given)


@pytest.mark.parametrize("arguments", [("models",), ("passes", "--json"), ("--help",), ("--version",)])
def test_stdout_on_a_full_disk(arguments: tuple[str, ...]) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = _process(*arguments, stdout=full)
    assert done.returncode == 1
    assert done.stderr.startswith("graphopt: stdout cannot be written: No space left on device; ")
    assert done.stderr.count("\n") == 1


def test_closed_stdout() -> None:
    done = _process("models", "--json", preexec_fn=lambda: os.close(1))
    assert done.returncode == 1
    assert done.stderr.startswith("graphopt: stdout is closed")
    assert done.stderr.count("\n") == 1


def test_closed_stderr() -> None:
    done = _process("run", "none.gopt", stderr=None, stdout=subprocess.PIPE, preexec_fn=lambda: os.close(2))
    assert (done.returncode, done.stdout) == (1, "")


def test_no_command_is_the_help(graphopt: Cli) -> None:
    result = graphopt()
    assert (result.code, result.out) == (2, "")
    assert result.err.strip() == graphopt("--help").out.strip()


def test_what_libraries_print_does_not_reach_stdout(graphopt: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from graphopt.report.document import Report

    def command() -> Any:
        print("noise")  # noqa: T201
        return Report({"a": 1})

    monkeypatch.setattr(importlib.import_module("graphopt.cli.passes"), "command", command)
    result = graphopt("passes", "--json")
    assert result.document == {"a": 1}
    assert result.err == "noise\n"


def test_a_closed_pipe_is_quiet() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "graphopt", "models"], stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert done.stderr == ""
    assert done.returncode != 0


def test_main_returns_the_exit_code() -> None:
    assert main(["passes", "--json"]) == 0
