from __future__ import annotations

import pytest

from graphopt.errors import GraphoptError
from graphopt.targets.gpu import devices


def test_an_architecture_stands_for_a_device() -> None:
    assert devices.find("sm_80") is devices.DEVICES["a100"]
    assert devices.find("H200").name == "h200"
    assert devices.find(None).arch == "sm_90"


@pytest.mark.parametrize("name", ["sm_70", "sm_52"])
def test_too_old(name: str) -> None:
    with pytest.raises(GraphoptError, match=f"--level {name} is too old: code is generated from sm_80 on"):
        devices.find(name)


@pytest.mark.parametrize("name", ["sm_999", "mi300", "", "sm_", "sm_9x"])
def test_unknown(name: str) -> None:
    with pytest.raises(GraphoptError, match="is no GPU that is described here; choose one of a100"):
        devices.find(name)


@pytest.mark.parametrize("device", devices.DEVICES.values(), ids=str)
def test_descriptions_are_possible(device: devices.Device) -> None:
    assert device.shared_per_block < device.shared_per_multiprocessor
    assert device.threads_per_block <= device.threads_per_multiprocessor
    assert device.rates["float64"] < device.rates["float32"] <= device.rates["tf32"] < device.rates["float16"]
    assert device.capability >= devices.OLDEST
