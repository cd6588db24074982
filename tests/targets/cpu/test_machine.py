from pathlib import Path
from typing import Any

import pytest

from graphopt.errors import GraphoptError
from graphopt.runtime.devices import host
from graphopt.targets.cpu import machine
from graphopt.targets.cpu.machine import LEVELS, CpuLevel, CpuMachine, detect


def test_the_host_gets_the_first_level_whose_features_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, level in LEVELS.items():
        monkeypatch.setattr(host, "features", lambda level=level: frozenset(level.features) | {"fpu"})
        assert detect().level.name == name


def test_a_processor_that_lacks_one_feature_of_a_level_does_not_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for missing in LEVELS["avx512"].features:
        monkeypatch.setattr(host, "features", lambda missing=missing: frozenset(LEVELS["avx512"].features) - {missing})
        assert detect().level.name != "avx512"


def test_a_host_that_tells_nothing_gets_the_plain_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "features", frozenset)
    assert detect().level.name == "x86-64"


def test_a_named_level_is_taken_whatever_the_host_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "features", frozenset)
    assert detect("avx512").level is LEVELS["avx512"]


def test_an_unknown_level_is_refused_with_the_known_ones() -> None:
    with pytest.raises(GraphoptError, match=r"level 'sse9' is unknown; choose one of avx512vnni, avx512, avx2vnni"):
        detect("sse9")


def test_lanes() -> None:
    one = CpuMachine(LEVELS["avx2"], 2)
    assert [one.lanes(dtype) for dtype in ("float32", "float64", "int64", "int32")] == [8, 4, 4, 8]
    assert CpuMachine(LEVELS["avx512"], 2).lanes() == 16
    assert CpuMachine(LEVELS["x86-64"], 2).lanes() == 4


def test_cores() -> None:
    assert detect(cores=7).cores == 7
    assert detect().cores == host.available_cpus()


@pytest.mark.parametrize(("text", "size"), [("48K\n", 48 << 10), ("2M", 2 << 20), ("4096", 4096), ("many", 7)])
def test_cache_sizes(monkeypatch: pytest.MonkeyPatch, text: str, size: int) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self, **_: text)
    assert machine._cache_bytes("index0", 7) == size


def test_cache_sizes_where_the_system_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(self: Path, **_: Any) -> str:
        raise FileNotFoundError(self)

    monkeypatch.setattr(Path, "read_text", missing)
    assert machine._cache_bytes("index0", 7) == 7


@pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS)
def test_the_features_of_a_level_cover_what_llvm_will_use(level: CpuLevel) -> None:
    """Beyond SSE2, which every x86-64 has: /proc/cpuinfo must show each set of instructions that code may contain."""
    import tvm
    from tvm.target import codegen

    linux = {
        "avx512f": "avx512f", "avx512bw": "avx512bw", "avx512cd": "avx512cd", "avx512dq": "avx512dq",
        "avx512vl": "avx512vl", "avx512vnni": "avx512_vnni", "avxvnni": "avx_vnni", "avx2": "avx2",
        "fma": "fma", "f16c": "f16c", "bmi": "bmi1", "bmi2": "bmi2", "movbe": "movbe", "lzcnt": "abm",
    }  # fmt: skip
    used = set(map(str, codegen.llvm_get_cpu_features(tvm.target.Target(CpuMachine(level, 1).llvm_target))))
    assert {linux[name] for name in used & set(linux)} == set(level.features) - {"sse2"}
