"""A cache of compiled CUDA kernels: machine code and the assembler's report, by all that they depend on."""

from __future__ import annotations

import json
from dataclasses import asdict

from graphopt.disk_cache import DiskCache
from graphopt.targets.common.kernel_cache import KernelCache
from graphopt.targets.gpu import nvrtc

FORMAT = 1
"""Version of the entries' layout, and of how the assembler's report is read."""


class CodeCache(KernelCache[nvrtc.Compiled]):
    """Machine code for one architecture, by the source; used from several threads."""

    def __init__(self, files: DiskCache, arch: str) -> None:
        """Args: arch: the architecture that the code is for."""
        super().__init__(files, {"format": FORMAT, "options": nvrtc.options(arch), "packages": nvrtc.packages()})
        self._arch = arch

    def compile(self, source: str) -> nvrtc.Compiled:
        """Machine code of `source`; the compiler runs only for what is not in the cache."""
        kept = self.get(source)
        if kept is not None:
            return kept
        compiled = nvrtc.compile_cuda(source, self._arch)
        self.put(compiled, source)
        return compiled

    def read(self, content: bytes) -> nvrtc.Compiled:
        """An entry from its bytes: the report as JSON, a zero byte, and the machine code."""
        report, _, image = content.partition(b"\0")
        resources = {entry: nvrtc.Resources(**fields) for entry, fields in json.loads(report).items()}
        return nvrtc.Compiled(image, resources)

    def write(self, entry: nvrtc.Compiled) -> bytes:
        """The bytes that `read` takes."""
        report = {name: asdict(resources) for name, resources in entry.resources.items()}
        return json.dumps(report).encode() + b"\0" + entry.image
