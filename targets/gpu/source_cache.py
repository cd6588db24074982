"""A cache of the sources that scheduled kernels became, by the digest of everything that their text depends on."""

from __future__ import annotations

import importlib.metadata
import json
from dataclasses import asdict, dataclass
from typing import Any

from graphopt.cost.workload import KernelPlan
from graphopt.disk_cache import DiskCache
from graphopt.program.program import Launch
from graphopt.targets.common import sources
from graphopt.targets.common.kernel_cache import KernelCache
from graphopt.targets.gpu.code import DeviceCode
from graphopt.targets.gpu.devices import GpuSpec

FORMAT = 1
"""Version of the entries' layout."""


@dataclass(frozen=True, slots=True)
class Generated:
    """Source and launches of a kernel, its plan, and the note that scheduling it left."""

    code: DeviceCode
    plan: KernelPlan
    note: str = ""


class SourceCache(KernelCache[Generated]):
    """Sources for one device, by the symbol and the text of the kernel."""

    def __init__(self, files: DiskCache, device: GpuSpec) -> None:
        """Args: device: the one that the code is for."""
        super().__init__(files, facts(device))

    def read(self, content: bytes) -> Generated:
        """The entry from JSON."""
        return _read(json.loads(content))

    def write(self, entry: Generated) -> bytes:
        """The bytes that `read` takes."""
        return json.dumps(asdict(entry)).encode()


def facts(device: GpuSpec) -> dict[str, Any]:
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
            launch["entry"],
            (launch["grid"][0], launch["grid"][1], launch["grid"][2]),
            (launch["block"][0], launch["block"][1], launch["block"][2]),
            tuple(launch["arguments"]),
            launch["shared"],
        )
        for launch in code["launches"]
    )
    scratch = tuple((dtype, tuple(shape)) for dtype, shape in code["scratch"])
    device_code = DeviceCode(code["source"], tuple(launches), scratch, code["resident"])
    return Generated(device_code, KernelPlan(**document["plan"]), document["note"])
