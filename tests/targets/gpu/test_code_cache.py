"""Machine code is kept by content: a hit asks no compiler, and anything else is a miss. So is source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx.parser
import pytest

from graphopt import disk_cache
from graphopt.compiler import compile_model
from graphopt.errors import CodegenError
from graphopt.targets.common import sources
from graphopt.targets.gpu import code, code_cache, nvrtc
from graphopt.targets.gpu.code_cache import CodeCache

SCALE = 'extern "C" __global__ void scale(float* y) { y[threadIdx.x] *= 2.f; }'
MODEL = """
<ir_version: 10, opset_import: ["": 20]>
g (float[8,64] x) => (float[8,64] y) { a = Softmax(x)  b = Relu(a)  y = Softmax(b) }
"""


def key(source: str, arch: str) -> str:
    return CodeCache(disk_cache.DiskCache(Path("nowhere"), 0), arch).key(source)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(disk_cache.VARIABLE, str(tmp_path))
    monkeypatch.setattr(sources, "unchanged", lambda: True)  # also while somebody edits
    return tmp_path / "objects"


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The symbols whose source was generated."""
    done: list[str] = []
    generate = code.generate

    def counted(symbol: str, *rest: Any) -> code.DeviceCode:
        done.append(symbol)
        return generate(symbol, *rest)

    monkeypatch.setattr(code, "generate", counted)
    return done


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The architectures that something was compiled for."""
    done: list[str] = []
    compile_cuda = nvrtc.compile_cuda

    def counted(source: str, arch: str) -> nvrtc.Compiled:
        done.append(arch)
        return compile_cuda(source, arch)

    monkeypatch.setattr(nvrtc, "compile_cuda", counted)
    return done


def contents(**options: Any) -> dict[str, bytes]:
    artifact = compile_model(onnx.parser.parse_model(MODEL), target="cuda", **options).artifact
    return {name: bytes(data) for name, data in artifact.files.items()}


def test_a_hit_compiles_nothing(folder: Path, compiled: list[str], generated: list[str]) -> None:
    cold = contents()
    assert compiled
    assert generated
    compiled.clear()
    generated.clear()
    assert contents() == cold
    assert compiled == generated == []


def test_a_device_takes_no_machine_code_of_another(folder: Path, compiled: list[str], generated: list[str]) -> None:
    """The source of these kernels may be the same: it depends on the description of the device."""
    for level in ("h100", "a100", "h200"):
        before = len(generated)
        contents(level=level)
        assert len(generated) > before
    assert set(compiled) == {"sm_90a", "sm_80"}
    assert compiled.count("sm_90a") == compiled.count("sm_80")


def test_without_the_cache_nothing_is_kept(folder: Path, compiled: list[str]) -> None:
    plain = contents(cache=False)
    assert not folder.exists()
    compiled.clear()
    assert contents() == plain
    assert compiled


def test_the_report_comes_back_with_the_code(folder: Path, compiled: list[str]) -> None:
    first, again = (CodeCache(disk_cache.objects(), "sm_80").compile(SCALE) for _ in range(2))
    assert compiled == ["sm_80"]
    assert again == first
    assert again.resources["scale"].registers > 0


def test_code_of_another_name_or_damaged_is_compiled_again(folder: Path, compiled: list[str]) -> None:
    for arch in ("sm_80", "sm_90"):
        CodeCache(disk_cache.objects(), arch).compile(SCALE)
    one, other = (folder / key(SCALE, arch) for arch in ("sm_80", "sm_90"))
    other.write_bytes(one.read_bytes())
    one.write_bytes(one.read_bytes()[:-1] + b"?")
    for arch in ("sm_80", "sm_90"):
        CodeCache(disk_cache.objects(), arch).compile(SCALE)
    assert compiled == ["sm_80", "sm_90", "sm_80", "sm_90"]


def test_an_error_is_not_kept(folder: Path, compiled: list[str]) -> None:
    for _ in range(2):
        with pytest.raises(CodegenError, match="missing"):
            CodeCache(disk_cache.objects(), "sm_80").compile('extern "C" __global__ void f() { missing; }')
    assert len(compiled) == 2
    assert not folder.exists()


def test_what_was_not_used_for_longest_makes_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_cache, "OBJECT_BYTES", 9_000)
    contents()
    assert 0 < sum(path.stat().st_size for path in folder.iterdir()) <= 9_000


def test_another_compiler_source_option_or_format_is_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [key(SCALE, "sm_80"), key(SCALE + " ", "sm_80"), key(SCALE, "sm_90a")]
    real, options = nvrtc.packages(), nvrtc.options
    for name in real:
        monkeypatch.setattr(nvrtc, "packages", lambda name=name: {**real, name: "99"})
        keys.append(key(SCALE, "sm_80"))
    monkeypatch.setattr(nvrtc, "packages", lambda: real)
    monkeypatch.setattr(nvrtc, "options", lambda arch: (*options(arch), "--use_fast_math"))
    keys.append(key(SCALE, "sm_80"))
    monkeypatch.setattr(nvrtc, "options", options)
    monkeypatch.setattr(code_cache, "FORMAT", code_cache.FORMAT + 1)
    keys.append(key(SCALE, "sm_80"))
    assert len(set(keys)) == len(keys) == 3 + len(real) + 2


def test_opencl_keeps_its_source(folder: Path, generated: list[str]) -> None:
    first = compile_model(onnx.parser.parse_model(MODEL), target="opencl").artifact
    assert len(list(folder.iterdir())) == len(generated) > 0
    generated.clear()
    again = compile_model(onnx.parser.parse_model(MODEL), target="opencl").artifact
    assert generated == []
    assert {name: bytes(data) for name, data in again.files.items()} == {
        name: bytes(data) for name, data in first.files.items()
    }
