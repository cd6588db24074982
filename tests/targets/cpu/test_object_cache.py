"""Compiled kernels are kept by content: a hit schedules and compiles nothing, and anything else is a miss."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt import disk_cache
from graphopt.compiler import compile_model
from graphopt.disk_cache import DiskCache
from graphopt.targets.common import sources
from graphopt.targets.common.identity import Identity
from graphopt.targets.cpu import build, object_cache, rules
from graphopt.targets.cpu.machine import detect
from graphopt.targets.cpu.object_cache import Built, ObjectCache
from graphopt.targets.cpu.target import CpuTarget

MODEL = """
<ir_version: 11, opset_import: ["": 21]>
twice (float[1, 64, 12, 12] x) => (float[1, 64, 12, 12] y)
<float[64, 64, 3, 3] w1, float[64, 64, 3, 3] w2, float[64, 64, 3, 3] w3>
{
    a = Conv<pads=[1,1,1,1]>(x, w1) b = Relu(a)
    c = Conv<pads=[1,1,1,1]>(b, w2) d = Relu(c)
    e = Conv<pads=[1,1,1,1]>(d, w3) y = Relu(e)
}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(disk_cache.VARIABLE, str(tmp_path))
    monkeypatch.setattr(sources, "unchanged", lambda: True)  # also while somebody edits
    return tmp_path / "objects"


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The symbols that were compiled, and a mark for every schedule that was applied."""
    done: dict[str, list[str]] = {"compiled": [], "scheduled": []}
    generate, apply = build.generate, rules.apply

    def generated(symbol: str, *rest: Any) -> bytes:
        done["compiled"].append(symbol)
        return generate(symbol, *rest)

    def applied(*arguments: Any) -> Any:
        done["scheduled"].append("")
        return apply(*arguments)

    monkeypatch.setattr(build, "generate", generated)
    monkeypatch.setattr(rules, "apply", applied)
    return done


def forget(work: dict[str, list[str]]) -> None:
    for marks in work.values():
        marks.clear()


@pytest.fixture(scope="module")
def model() -> Any:
    import onnx
    import onnx.parser

    proto = onnx.parser.parse_model(MODEL)
    generator = np.random.default_rng(0)
    for name in ("w1", "w2", "w3"):
        array = generator.standard_normal((64, 64, 3, 3)).astype(np.float32) * 0.1
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return proto


def contents(artifact: Any) -> dict[str, bytes]:
    return {name: bytes(data) for name, data in artifact.files.items()}


def symbols(artifact: Any) -> list[str]:
    return [call.symbol for stage in artifact.program.stages for part in stage.segments for call in part.calls]


def test_equal_kernels_are_built_once(model: Any, folder: Path, work: dict[str, list[str]]) -> None:
    """Three equal layers: also over the boundary of two stages, where only the ends differ."""
    artifact = compile_model(model, passes="normalize,fuse,select-conv{algorithms=blocked},layout").artifact
    assert len(set(work["compiled"])) == len(work["compiled"]) == len(work["scheduled"])
    convolutions = [symbol for symbol in symbols(artifact) if symbol.startswith("conv_direct")]
    assert len(convolutions) == 3
    assert len(set(convolutions)) == 1


def test_stages_share_kernels(model: Any, folder: Path, work: dict[str, list[str]]) -> None:
    artifact = compile_model(model, ranks=2, cache=False).artifact
    assert len(artifact.program.stages) == 2
    assert len(set(work["compiled"])) == len(work["compiled"])
    first, second = (
        {call.symbol for part in stage.segments for call in part.calls} for stage in artifact.program.stages
    )
    assert first & second


def test_a_hit_schedules_and_compiles_nothing(model: Any, folder: Path, work: dict[str, list[str]]) -> None:
    cold = compile_model(model)
    assert work["compiled"]
    forget(work)
    warm = compile_model(model, verify="ends")
    assert work == {"compiled": [], "scheduled": []}
    assert contents(warm.artifact) == contents(cold.artifact)
    assert warm.notes == cold.notes


def test_without_the_cache_everything_is_compiled_and_the_bytes_are_the_same(
    model: Any, folder: Path, work: dict[str, list[str]]
) -> None:
    cached = compile_model(model).artifact
    before = sorted(path.name for path in folder.iterdir())
    compiled = set(work["compiled"])
    forget(work)
    plain = compile_model(model, cache=False).artifact
    assert set(work["compiled"]) == compiled
    assert contents(plain) == contents(cached)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_the_note_of_a_schedule_is_kept(model: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        apply = rules.apply
        patch.setattr(rules, "apply", lambda *arguments: (apply(*arguments)[0], "a note, with ünicode"))
        cold = compile_model(model)
    warm = compile_model(model)
    assert [note for note in warm.notes if note.endswith("a note, with ünicode")]
    assert warm.notes == cold.notes


def test_a_corrupt_entry_is_compiled_again(model: Any, folder: Path, work: dict[str, list[str]]) -> None:
    cold = compile_model(model)
    spoilt = sorted(folder.iterdir())[0]
    good = spoilt.read_bytes()
    spoilt.write_bytes(good[:-100] + bytes(100))
    forget(work)
    warm = compile_model(model)
    assert len(work["compiled"]) == 1
    assert contents(warm.artifact) == contents(cold.artifact)
    assert spoilt.read_bytes() == good


def test_an_evicted_entry_is_compiled_again(
    model: Any, folder: Path, work: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_cache, "OBJECT_BYTES", 40_000)
    cold = compile_model(model)
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 40_000
    forget(work)
    warm = compile_model(model)
    assert work["compiled"]
    assert contents(warm.artifact) == contents(cold.artifact)


def test_compiling_begins_before_the_library_is_asked_for(lab: Any, work: dict[str, list[str]]) -> None:
    model = lab.model("a = Softmax(x) y = Relu(a)", {"x": np.zeros((8, 64), np.float32)})
    graph = model.graph
    results = []
    for ahead in (False, True):
        target = CpuTarget(ahead=ahead)
        lowered = target.lower(list(graph), list(graph.inputs), list(graph.outputs), model.opset_imports, "s_")
        if ahead:
            wait([kernel.object for kernel in target._builder._kernels.values()], 60)
        assert len(work["compiled"]) == (len(lowered.functions) if ahead else 0)
        results.append(target.library(lowered.functions))
        assert sorted(work["compiled"]) == sorted(lowered.functions), "each once"
        forget(work)
    assert results[0] == results[1]


def test_a_kernel_that_fails_ahead_fails_the_library(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> bytes:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(build, "generate", failing)
    model = lab.model("y = Relu(x)", {"x": np.zeros((8, 64), np.float32)})
    graph = model.graph
    target = CpuTarget(ahead=True)
    lowered = target.lower(list(graph), list(graph.inputs), list(graph.outputs), model.opset_imports, "s_")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no such instruction"):
            target.library(lowered.functions)


def identity() -> Identity:
    return Identity("kernel_0", "text")


def keys(**machine: Any) -> str:
    found = dataclasses.replace(detect("avx2", 2), **machine)
    return ObjectCache(DiskCache(Path("nowhere"), 0), found).key(*identity().parts)


def test_another_machine_is_another_key() -> None:
    level = detect("avx512", 2).level
    assert len({keys(), keys(level=level), keys(cores=3), keys(l1_bytes=1), keys(l2_bytes=1)}) == 5
    assert keys() == keys()


@pytest.mark.parametrize("what", ["sources", "apache-tvm", "apache-tvm-ffi", "llvm", "format"])
def test_another_version_is_another_key(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys()
    if what == "sources":
        monkeypatch.setattr(sources, "digest", lambda: "edited")
    elif what == "format":
        monkeypatch.setattr(object_cache, "FORMAT", object_cache.FORMAT + 1)
    elif what == "llvm":
        real = object_cache.tvm.get_global_func
        monkeypatch.setattr(
            object_cache.tvm, "get_global_func", lambda name: (lambda: 99) if "version" in name else real(name)
        )
    else:
        real = object_cache.importlib.metadata.version
        monkeypatch.setattr(object_cache.importlib.metadata, "version", lambda name: real(name) + ".1" * (name == what))
    assert keys() != before


def test_another_kernel_is_another_key(tmp_path: Path) -> None:
    cache = ObjectCache(DiskCache(tmp_path, 1000), detect())
    cache.put(Built(b"\0code\0", "note"), *identity().parts)
    assert cache.get(*identity().parts) == Built(b"\0code\0", "note")
    assert cache.get("kernel_1", "text") is None
    assert cache.get("kernel_0", "other") is None


def test_a_level_takes_nothing_of_another(lab: Any, folder: Path, work: dict[str, list[str]]) -> None:
    graph = lab.model("y = Softmax(x)", {"x": np.zeros((8, 64), np.float32)})
    for level in ("avx2", "x86-64", "avx2"):
        target = CpuTarget(level, cache=True)
        arguments = (list(graph.graph), list(graph.graph.inputs), list(graph.graph.outputs), graph.opset_imports, "s_")
        target.library(target.lower(*arguments).functions)
    assert len(work["compiled"]) == 2


_COMPILE = """
import sys
import graphopt
graphopt.compile(sys.argv[1], costs="roofline").save(sys.argv[2])
"""


def test_two_processes_at_once_make_the_same_artifact(model: Any, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    outputs = [tmp_path / "a.gopt", tmp_path / "b.gopt"]
    running = [
        subprocess.Popen([sys.executable, "-P", "-c", _COMPILE, str(tmp_path / "m.onnx"), str(output)])
        for output in outputs
    ]
    assert [process.wait(120) for process in running] == [0, 0]
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    assert not [path for path in folder.iterdir() if path.suffix == ".tmp"]


def test_two_kernels_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    builder = build.Builder(detect())
    monkeypatch.setattr(builder, "_new", lambda found: build._Kernel(found, None, ""))
    builder.code(Identity("kernel_0", "text"))
    with pytest.raises(build.GraphoptError, match="two kernels are called kernel_0"):
        builder.code(Identity("kernel_0", "other"))
