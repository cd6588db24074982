"""Kernels that were scheduled and turned into source before, by the digest of everything that decides their text."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from dataclasses import asdict, dataclass
from typing import Any

from graphopt.cost.workload import Plan
from graphopt.disk_cache import DiskCache
from graphopt.program.program import Launch
from graphopt.targets.common import sources
from graphopt.targets.common.identity import Identity
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


class SourceCache:
    """Kernels for one device, in a folder that others may share."""

    def __init__(self, files: DiskCache, device: Device) -> None:
        """Nothing is read before the first `get`."""
        self._files = files
        self._context = json.dumps(facts(device), sort_keys=True)
        self._grown = False

    def key(self, identity: Identity) -> str:
        """The name of the entry."""
        return hashlib.sha256("\n".join((self._context, identity.symbol, identity.text)).encode()).hexdigest()

    def get(self, identity: Identity) -> Generated | None:
        """What was stored for it; None if nothing was, or if it is not what was written."""
        content = self._files.get(self.key(identity))
        return None if content is None else _read(json.loads(content))

    def put(self, identity: Identity, generated: Generated) -> None:
        """Keep it."""
        self._files.put(self.key(identity), json.dumps(asdict(generated)).encode())
        self._grown = True

    def trim(self) -> None:
        """Make room if something was added."""
        if self._grown:
            self._files.trim()
            self._grown = False


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
