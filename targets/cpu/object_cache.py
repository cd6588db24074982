"""Kernels that were compiled before: object files by the digest of everything that decides their bytes."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from dataclasses import dataclass
from typing import Any

import tvm

from graphopt.disk_cache import DiskCache
from graphopt.targets.common import sources
from graphopt.targets.common.identity import Identity
from graphopt.targets.cpu.machine import CpuMachine

FORMAT = 1
"""Version of the entries' layout."""


@dataclass(frozen=True, slots=True)
class Built:
    """A kernel as machine code: an object file that defines its symbol, and the note that scheduling it left."""

    object: bytes
    note: str


class ObjectCache:
    """Object files for one machine, in a folder that other machines and versions may share."""

    def __init__(self, files: DiskCache, machine: CpuMachine) -> None:
        """Nothing is read before the first `get`."""
        self._files = files
        self._context = json.dumps(facts(machine), sort_keys=True)
        self._grown = False

    def key(self, identity: Identity) -> str:
        """The name of the entry."""
        return hashlib.sha256("\n".join((self._context, identity.symbol, identity.text)).encode()).hexdigest()

    def get(self, identity: Identity) -> Built | None:
        """What was stored for it; None if nothing was, or if it is not what was written."""
        content = self._files.get(self.key(identity))
        if content is None:
            return None
        note, _, code = content.partition(b"\0")
        return Built(code, note.decode())

    def put(self, identity: Identity, built: Built) -> None:
        """Keep it."""
        self._files.put(self.key(identity), built.note.replace("\0", " ").encode() + b"\0" + built.object)
        self._grown = True

    def trim(self) -> None:
        """Make room if something was added."""
        if self._grown:
            self._files.trim()
            self._grown = False


def facts(machine: CpuMachine) -> dict[str, Any]:
    """What an object file depends on besides the function: schedules, machine, code generator."""
    return {
        "format": FORMAT,
        "sources": sources.digest(),
        "machine": repr(machine),
        "target": machine.llvm_target,
        "triple": str(tvm.get_global_func("target.llvm_get_system_triple")()),
        "llvm": int(tvm.get_global_func("target.llvm_version_major")()),
        "tvm": importlib.metadata.version("apache-tvm"),
        "tvm_ffi": importlib.metadata.version("apache-tvm-ffi"),
    }
