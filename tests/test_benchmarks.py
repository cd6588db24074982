"""BENCHMARKS.md says what was measured, and README.md what BENCHMARKS.md says."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from graphopt.bench import suite

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
    shown = {measure.kept(name) for name in measure.TABLES | measure.ON_GPU}
    assert {file for folder in ("cpu", "gpu") for file in (ROOT / "benchmarks" / folder).glob("*.json")} <= shown


def test_what_was_measured_was_measured_by_the_command_above_it(measure: Any) -> None:
    for name, entry in (measure.TABLES | measure.ON_GPU).items():
        if measure.kept(name).is_file():
            assert json.loads(measure.kept(name).read_text(encoding="utf-8"))["command"] == entry.command


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
    from graphopt.bench.peers.runtimes import PEERS
    from graphopt.models import describe

    for entry in (measure.TABLES | measure.ON_GPU).values():
        words = entry.command.split()
        assert words[0] in ("graphopt", "python")
        assert all(describe(word.removeprefix("zoo:")) for word in words if word.startswith("zoo:"))
        options = {"--peer": PEERS, "--suite": [each.value for each in _suites()]}
        for option, known in options.items():
            assert all(words[at + 1] in known for at, word in enumerate(words) if word == option)


def _gemm(speed: float, equal: bool = True) -> dict[str, Any]:
    ratio = {"value": 1 / speed, "low": 0.9 / speed, "high": 1.1 / speed}
    ratios = {"torch": ratio} if equal else {}
    return {"model": "zoo:layer/gemm-4096", "error": None, "equal": equal, "ratios": ratios}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "not measured"),
        ([_gemm(0.95)], "0.95 [0.86, 1.06] x"),
        ([_gemm(0.95, equal=False)], "failed: not timed"),
        ([{**_gemm(0.95), "ratios": {}}], "torch failed"),
        ([{"model": "zoo:layer/gemm-4096", "error": "no"}], "failed: not timed"),
    ],
)
def test_goals_are_shown_as_measured(
    measure: Any, rows: list[dict[str, Any]], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "HERE", tmp_path)
    if rows:
        (tmp_path / "gpu").mkdir()
        (tmp_path / "gpu" / "gemm.json").write_text(json.dumps({"document": {"models": rows}}))
    first, *others = measure.goals().splitlines()[1:]
    assert first.startswith("fp32 product, 4096 cubed")
    assert first.endswith(said)
    assert all(line.endswith("not measured") for line in others)
    assert len(others) == len(measure.GOALS) - 1 + len(measure.CHECKED)


def test_goals_are_of_models_that_are_measured(measure: Any) -> None:
    from graphopt.bench.suite import suite

    for _, name, model, peer, _ in measure.GOALS:
        words = measure.ON_GPU[name].command.split()
        suites = [words[at + 1] for at, word in enumerate(words) if word == "--suite"]
        assert model in [*words, *(each for known in suites for each in suite(known, device=True))]
        assert peer in words or "--peer" not in words
    assert set(measure.CHECKED) <= set(measure.ON_GPU)


def _answers(
    measure: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gpu: str = "A GPU"
) -> list[tuple[str, ...]]:
    """Nothing is run: every command answers at once, and is written down."""
    asked: list[tuple[str, ...]] = []

    def answer(*arguments: str) -> Any:
        asked.append(arguments)
        row = {**_gemm(0.5), "model": arguments[1], "quiet": True, "sides": {}, "fallback_nodes": 0, "mismatch": None}
        row["ratios"]["torch"]["log_deviation"] = 0.1
        return {
            "threads": 2,
            "precision": "fp32",
            "environment": {"versions": {}, "device": {"name": gpu, "driver": "1", "cuda": "13.0"}},
            "models": [row],
            "geometric_mean": suite.means([row], ["torch"]),
        }

    monkeypatch.setattr(measure, "graphopt", answer)
    monkeypatch.setattr(measure, "HERE", tmp_path)
    monkeypatch.setattr(measure, "PAGE", tmp_path / "page.md")
    return asked


def test_models_on_a_gpu_are_kept_one_by_one(measure: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = _answers(measure, monkeypatch, tmp_path)
    assert measure.main(["gpu-gemm", "gpu-bert"]) == 0
    rest = ("--target", "cuda", "--peer", "torch")
    assert asked[:2] == [("bench", f"zoo:layer/gemm-4096{kind}", *rest) for kind in ("", "-fp16")]
    assert asked[2] == ("bench", "zoo:bert-base-b8", "--target", "cuda", "--precision", "fp16")
    document = json.loads((tmp_path / "gpu" / "gemm.json").read_text())["document"]
    assert [row["model"] for row in document["models"]] == [each[1] for each in asked[:2]]
    assert document["geometric_mean"]["torch"]["models"] == 2
    assert document["geometric_mean"]["torch"]["value"] == pytest.approx(2.0)
    assert "fp16 product, 4096 cubed" in (tmp_path / "page.md").read_text()


def test_what_is_kept_is_not_measured_again(measure: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = _answers(measure, monkeypatch, tmp_path)
    measure.main(["gpu-gemm"])
    file = tmp_path / "gpu" / "gemm.json"
    answer = json.loads(file.read_text())
    answer["document"]["models"][1]["error"] = "it was ended"
    file.write_text(json.dumps(answer))
    del asked[:]
    assert measure.main(["gpu-gemm", "--resume"]) == 0
    assert [each[1] for each in asked] == ["zoo:layer/gemm-4096-fp16"]
    assert [row["error"] for row in json.loads(file.read_text())["document"]["models"]] == [None, None]
    file.write_text(json.dumps(answer))
    _answers(measure, monkeypatch, tmp_path, "Another GPU")
    with pytest.raises(SystemExit, match="measured on A GPU and this is Another GPU: leave out --resume"):
        measure.main(["gpu-gemm", "--resume"])


def test_a_command_that_fails_leaves_what_is_kept(
    measure: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    before = (ROOT / "BENCHMARKS.md").read_bytes()
    assert measure.main(["gpu"]) == 1
    assert "--target cuda is timed on a device" in capfd.readouterr().err
    assert (ROOT / "BENCHMARKS.md").read_bytes() == before


def _suites() -> Any:
    from graphopt.cli.bench import Suite

    return Suite
