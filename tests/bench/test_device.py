"""The benchmark on a device: the whole way on PoCL, and what is said where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from graphopt.bench import device, one, suite
from graphopt.bench.sides import MOST_SETS, Settings, sets
from graphopt.errors import GraphoptError
from graphopt.report import benchmark
from graphopt.report.document import Table, plain
from graphopt.runtime.devices.opencl import OpenClDevice


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, opencl: OpenClDevice) -> None:
    """No process for each model: PoCL is prepared in this one."""

    def row(model: str, options: dict[str, Any], say: Any) -> dict[str, Any]:
        options = {**options, "settings": Settings(**options["settings"])}
        try:
            return one.measure(model, say=say, **options)
        except GraphoptError as error:
            return {"model": model, "error": str(error)}

    monkeypatch.setattr(suite, "_row", row)


def test_the_whole_way_on_pocl(in_process: None, write_small: Path) -> None:
    document = suite.run([str(write_small), "none.onnx"], 1, 4, target="opencl")
    good, bad = document["models"]
    assert good["error"] is None
    assert good["equal"]
    assert list(good["sides"]) == ["graphopt", "onnxruntime"]
    ours, theirs = good["sides"].values()
    assert ours["runs"] == theirs["runs"] == 4
    assert ours["peak_bytes"] >= 4 * 8 * 4
    assert ours["sets"] > 1
    assert 0 < ours["low"] <= ours["value"] <= ours["high"]
    assert ours["largest_error"] < 1e-5
    assert good["ratios"]["onnxruntime"]["value"] == pytest.approx(ours["value"] / theirs["value"])
    assert "none.onnx is not a file" in bad["error"]
    found = document["environment"]["device"]
    assert found["name"] and found["driver"] and found["l2_bytes"] > 0  # noqa: PT018
    assert (document["target"], document["precision"]) == ("opencl", "fp32")
    text = plain(benchmark.blocks(document))
    assert found["name"] in text
    assert "replayed runs" in text
    assert benchmark.failed(document)  # of the file that there is not


def test_what_is_asked_of_a_gpu(driver: Any, write_small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No kernel runs on paper: what they would compute is taken as right."""
    monkeypatch.setattr("graphopt.verify.judge.compare", lambda *_: [])
    monkeypatch.setattr(one, "_largest", lambda *_: None)
    options = {"settings": Settings(1, target="cuda", level="sm_90", precision="fp16"), "runs": 4, "peers": []}
    facts = device.find("cuda")
    assert str(device.level(facts)).startswith("sm_90")
    row = one.measure(str(write_small), **options)  # type: ignore[arg-type]
    ours = row["sides"]["graphopt"]
    assert (ours["value"], ours["runs"], ours["sets"]) == (2.5e-3, 4, sets(facts["l2_bytes"], ours["peak_bytes"]))
    assert len(driver.named("cuGraphLaunch")) >= 4
    assert driver.named("cuLaunchKernel")
    assert suite.environment(facts)["versions"]["nvidia-cuda-nvrtc"]


def test_a_model_that_is_wrong_is_not_timed(
    in_process: None, write_small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = device.DeviceSide.run
    monkeypatch.setattr(device.DeviceSide, "run", lambda *args: {n: a + 1 for n, a in original(*args).items()})
    document = suite.run([str(write_small)], 1, 4, target="opencl")
    (row,) = document["models"]
    assert (row["error"], row["equal"], row["sides"], row["ratios"]) == (None, False, {}, {})
    assert "output y" in row["mismatch"]
    table = benchmark.blocks(document)[0]
    assert isinstance(table, Table)
    assert table.rows[0][1:4] == ("-", "-", "-")
    assert table.rows[0][-1] == "NO"
    assert benchmark.failed(document)


def test_peers_of_cpus_say_so(in_process: None, write_small: Path) -> None:
    (row,) = suite.run([str(write_small)], 1, 2, ["greedy"], target="opencl")["models"]
    assert row["failures"] == {"greedy": "greedy is a peer on CPUs; leave out --target opencl"}
    assert list(row["sides"]) == ["graphopt"]


def test_sessions_take_turns(opencl: OpenClDevice, write_small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    from graphopt.compiler import compile_model

    file = compile_model(str(write_small), target="opencl").artifact.save(write_small.with_suffix(".gopt"))
    monkeypatch.setattr(device, "sets", lambda *_: 3)
    side = device.DeviceSide(file, Settings(1, target="opencl"))
    block = side.block({"x": np.ones((4, 8), np.float32)})
    laps: list[list[Any]] = []
    original = side._device.laps
    monkeypatch.setattr(side._device, "laps", lambda steps: laps.append(list(steps)) or original(steps))
    assert [len(block(4)), len(block(1))] == [4, 1]
    first, second = laps
    assert len(first) == 5  # the first is not counted
    assert len({id(step) for step in first}) == 3
    assert second == [first[2], first[0]]  # goes on where the first block ended


def test_the_number_of_sets() -> None:
    assert sets(50 << 20, 51 << 20) == 1
    assert sets(50 << 20, 25 << 20) == 3  # what lies between two uses of one set is the size of the cache
    assert sets(50 << 20, 100) == MOST_SETS
    assert sets(0, 0) == 1


@pytest.mark.parametrize(
    ("name", "arch", "level"),
    [
        ("NVIDIA H100 80GB HBM3", "sm_90", "h100"),
        ("NVIDIA H200", "sm_90", "h200"),
        ("NVIDIA A100-SXM4-80GB", "sm_80", "a100"),
        ("NVIDIA GeForce RTX 4090", "sm_89", "rtx4090"),
        ("NVIDIA L40S", "sm_89", "sm_89"),
        ("Portable computing", None, None),
    ],
)
def test_what_is_here_is_compiled_for(name: str, arch: str | None, level: str | None) -> None:
    assert device.level({"name": name, "arch": arch}) == level


def test_layers_on_a_device(opencl: OpenClDevice, write_small: Path) -> None:
    from graphopt.bench import layers
    from graphopt.report import layers as reporting
    from graphopt.report import roofline

    document = layers.profile(str(write_small), Settings(1, target="opencl"), 3)
    (row,) = document["kernels"]
    assert row["seconds"] > 0
    assert row["predicted"] > 0
    assert row["bytes"] == 2 * 4 * 8 * 4
    assert row["share_of_peak"] == pytest.approx(row["bytes"] / document["peak"]["bandwidth"] / row["seconds"])
    table, text = reporting.blocks(document)
    assert isinstance(table, Table)
    assert {"us", "predicted us", "share"} <= set(table.columns)
    assert isinstance(text, str)
    assert "as its maker has them" in text
    assert "<svg" in roofline.svg(document)


def test_layers_on_a_gpu(driver: Any, write_small: Path) -> None:
    from graphopt.bench import layers

    document = layers.profile(str(write_small), Settings(1, target="cuda", precision="tf32"), 2)
    assert [row["seconds"] for row in document["kernels"]] == [2.5e-3]
    assert document["level"].startswith("sm_90")
    assert document["peak"]["flops"] == document["peak"]["rates"]["tf32"]
    assert document["environment"]["device"]["name"] == "Paper GPU"


def test_fallback_models_are_rows_too(opencl: OpenClDevice, tmp_path: Path) -> None:
    import onnx.parser

    from graphopt.bench import layers
    from graphopt.report import layers as reporting

    text = """<ir_version: 10, opset_import: ["": 20]>
        net (float[4, 3, 3] x) => (float[4] y) { a = Exp(x)  d = Det(a)  y = Tanh(d) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "net.onnx")
    document = layers.profile(str(tmp_path / "net.onnx"), Settings(1, target="opencl"), 2)
    assert [row["bound"] for row in document["kernels"]] == ["memory", "host", "memory"]
    assert [row["predicted"] is None for row in document["kernels"]] == [False, True, False]
    assert reporting.blocks(document)


def test_without_a_device_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cuda.bindings", None)
    with pytest.raises(GraphoptError, match="^--target cuda is timed on a device: the package cuda-bindings is not"):
        suite.run(["zoo:lenet5"], 1, target="cuda")


def test_the_batch_is_of_the_zoo() -> None:
    assert suite.batched("zoo:resnet50", 32) == "zoo:resnet50-b32"
    with pytest.raises(GraphoptError, match="--batch goes with models of the zoo; give net.onnx its shapes with"):
        suite.batched("net.onnx", 32)
