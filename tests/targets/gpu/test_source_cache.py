"""Generated kernels come back as they were put, and only for what they were made of."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from graphopt.cost.workload import KernelPlan
from graphopt.disk_cache import DiskCache
from graphopt.program.program import Launch
from graphopt.targets.common import sources
from graphopt.targets.common.identity import Identity
from graphopt.targets.gpu import devices, source_cache
from graphopt.targets.gpu.code import DeviceCode
from graphopt.targets.gpu.source_cache import Generated, SourceCache

H100 = devices.find("h100")
LAUNCHES = (Launch("first", (4, 2, 1), (128, 1, 1), (0, 2), 4096), Launch("second", (1, 1, 1), (32, 1, 1), (2, 1)))
MADE = Generated(
    DeviceCode("void first() {} // ünicode", LAUNCHES, (("float32", (4, 8)), ("float16", ())), 3),
    KernelPlan("product", "64x64x8/4x4", 1.5e-6, "plain", "fp16 mma"),
    "a note",
)


def identity(symbol: str = "kernel_0", text: str = "text") -> Identity:
    return Identity(symbol, text)


def key(device: devices.GpuSpec = H100) -> str:
    return SourceCache(DiskCache(Path("nowhere"), 0), device).key(*identity().parts)


@pytest.mark.parametrize("made", [MADE, Generated(DeviceCode("", ()), KernelPlan("elements"))])
def test_what_was_put_comes_back(tmp_path: Path, made: Generated) -> None:
    cache = SourceCache(DiskCache(tmp_path, 10_000), H100)
    assert cache.get(*identity().parts) is None
    cache.put(made, *identity().parts)
    assert cache.get(*identity().parts) == made
    assert cache.get(*identity("kernel_1").parts) is None
    assert cache.get(*identity(text="other").parts) is None


def test_a_damaged_entry_is_absent(tmp_path: Path) -> None:
    cache = SourceCache(DiskCache(tmp_path, 10_000), H100)
    cache.put(MADE, *identity().parts)
    (entry,) = tmp_path.iterdir()
    entry.write_bytes(entry.read_bytes().replace(b"4096", b"8192"))
    assert cache.get(*identity().parts) is None


def test_room_is_made(tmp_path: Path) -> None:
    cache = SourceCache(DiskCache(tmp_path, 1), H100)
    cache.put(MADE, *identity().parts)
    cache.trim()
    assert list(tmp_path.iterdir()) == []


def test_another_device_is_another_key() -> None:
    changed = [
        dataclasses.replace(H100, **change)
        for change in ({"arch": "sm_90"}, {"multiprocessors": 114}, {"l2_bytes": 1}, {"rates": devices.OPENCL.rates})
    ]
    assert len({key(), *map(key, changed), key(devices.OPENCL)}) == 6
    assert key() == key(devices.find("h100"))


@pytest.mark.parametrize("what", ["sources", "apache-tvm", "apache-tvm-ffi", "format"])
def test_another_version_is_another_key(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = key()
    if what == "sources":
        monkeypatch.setattr(sources, "digest", lambda: "edited")
    elif what == "format":
        monkeypatch.setattr(source_cache, "FORMAT", source_cache.FORMAT + 1)
    else:
        real: Any = source_cache.importlib.metadata.version
        monkeypatch.setattr(source_cache.importlib.metadata, "version", lambda name: real(name) + ".1" * (name == what))
    assert key() != before
