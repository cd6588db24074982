"""Kernels that were scheduled and turned into source before, by the digest of everything that decides their text."""

from __future__ import annotations

import importlib.metadata
import json
from dataclasses import asdict, dataclass
from typing import Any

from graphopt.cost.workload import Plan
from graphopt.disk_cache import DiskCache
from graphopt.program.program import Launch
from graphopt.targets.common import sources
from graphopt.targets.common.kernel_cache import KernelCache
from graphopt.targets.gpu.code import DeviceCode
from graphopt.targets.gpu.devices import Device

FORMAT = 1
"""Version of the entries' layout."""


@dataclass(frozen=True, slots=True)
class Generated:
    """Source and launches of a kernel, how it computes, and the note that scheduling it left."""

    code: DeviceCode
    plan: Plan
    note: str = ""


class SourceCache(KernelCache[Generated]):
    """Sources for one device, by the symbol and the text of the kernel."""

    def __init__(self, files: DiskCache, device: Device) -> None:
        """Args: device: that the code is for."""
        super().__init__(files, facts(device))

    def read(self, content: bytes) -> Generated:
        """The entry from JSON."""
        return _read(json.loads(content))

    def write(self, entry: Generated) -> bytes:
        """The bytes that `read` takes."""
        return json.dumps(asdict(entry)).encode()


def facts(device: Device) -> dict[str, Any]:
    """What a source depends on besides the function: schedules, device, code generator."""
    return {
        "format": FORMAT,
        "sources": sources.digest(),
        "device": repr(device),
        "tvm": importlib.metadata.version("apache-tvm"),
        "tvm_ffi": importlib.metadata.version("apache-tvm-ffi"),
    }


def _read(document: dict[str, Any]) -> Generated:
    code = document["code"]
    launches = (
        Launch(
            each["entry"],
            (each["grid"][0], each["grid"][1], each["grid"][2]),
            (each["block"][0], each["block"][1], each["block"][2]),
            tuple(each["arguments"]),
            each["shared"],
        )
        for each in code["launches"]
    )
    scratch = tuple((dtype, tuple(shape)) for dtype, shape in code["scratch"])
    made = DeviceCode(code["source"], tuple(launches), scratch, code["resident"])
    return Generated(made, Plan(**document["plan"]), document["note"])
