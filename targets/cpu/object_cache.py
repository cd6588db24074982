"""The cache of compiled kernels: object files by the digest of everything that decides their bytes."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from typing import Any

import tvm

from graphopt.disk_cache import DiskCache
from graphopt.targets.common import sources
from graphopt.targets.common.kernel_cache import KernelCache
from graphopt.targets.cpu.machine import CpuMachine

FORMAT = 1
"""Version of the entries' layout."""


@dataclass(frozen=True, slots=True)
class Built:
    """A kernel as machine code: an object file that defines its symbol, and the note that scheduling it left."""

    object: bytes
    note: str


class ObjectCache(KernelCache[Built]):
    """Object files for one machine, by the symbol and the text of the kernel."""

    def __init__(self, files: DiskCache, machine: CpuMachine) -> None:
        """Set up the cache; nothing is read yet.

        Args:
            files: the folder.
            machine: the machine that the code is generated for.
        """
        super().__init__(files, facts(machine))

    def read(self, content: bytes) -> Built:
        """Parse an entry: the note, a zero byte, and the code."""
        note, _, code = content.partition(b"\0")
        return Built(code, note.decode())

    def write(self, entry: Built) -> bytes:
        """The bytes that `read` takes."""
        return entry.note.replace("\0", " ").encode() + b"\0" + entry.object


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
