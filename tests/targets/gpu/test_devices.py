from __future__ import annotations

import pytest

from graphopt.errors import GraphoptError
from graphopt.targets.gpu import devices


def test_an_architecture_stands_for_a_device() -> None:
    assert devices.find("sm_80") == devices.DEVICES["a100"]
    assert devices.find("H200").name == "h200"
    assert devices.find(None) == devices.find("sm_90a") == devices.DEVICES["h100"]
    assert devices.find("sm_90").warpgroups is False


@pytest.mark.parametrize(
    ("name", "arch", "level"),
    [
        ("NVIDIA H100 80GB HBM3", "sm_90", "h100"),
        ("NVIDIA H200", "sm_90", "h200"),
        ("NVIDIA GH800", "sm_90", "sm_90a"),
        ("NVIDIA A100-SXM4-80GB", "sm_80", "a100"),
        ("NVIDIA GeForce RTX 4090", "sm_89", "rtx4090"),
        ("NVIDIA L4", "sm_89", "sm_89"),
        ("NVIDIA B200", "sm_100", "sm_100"),
    ],
)
def test_the_level_of_a_gpu(name: str, arch: str, level: str) -> None:
    assert devices.level_of(name, arch) == level


@pytest.mark.parametrize("name", ["sm_70", "sm_52"])
def test_too_old(name: str) -> None:
    with pytest.raises(GraphoptError, match=f"--level {name} is too old: code is generated from sm_80 on"):
        devices.find(name)


@pytest.mark.parametrize("name", ["sm_999", "mi300", "", "sm_", "sm_9x"])
def test_unknown(name: str) -> None:
    with pytest.raises(GraphoptError, match="is no GPU that is described here; choose one of a100"):
        devices.find(name)


@pytest.mark.parametrize("device", devices.DEVICES.values(), ids=str)
def test_descriptions_are_possible(device: devices.GpuSpec) -> None:
    assert device.shared_per_block < device.shared_per_multiprocessor
    assert device.threads_per_block <= device.threads_per_multiprocessor
    assert device.rates["float64"] < device.rates["float32"] <= device.rates["tf32"] < device.rates["float16"]
    assert device.capability >= devices.OLDEST
