"""Kernels that the CUDA compiler has seen before: machine code and its report, by all that decides them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

from graphopt.disk_cache import DiskCache
from graphopt.targets.gpu import nvrtc

FORMAT = 1
"""Version of the entries' layout, and of how the assembler's report is read."""


class CodeCache:
    """Machine code in a folder that other architectures and versions may share; used from several threads."""

    def __init__(self, files: DiskCache) -> None:
        """Nothing is read before the first `compile`."""
        self._files = files
        self._grown = False

    def compile(self, source: str, arch: str) -> nvrtc.Compiled:
        """As `nvrtc.compile_cuda`, which is asked only for what is not there."""
        name = key(source, arch)
        content = self._files.get(name)
        if content is not None:
            return _read(content)
        compiled = nvrtc.compile_cuda(source, arch)
        self._files.put(name, _written(compiled))
        self._grown = True
        return compiled

    def trim(self) -> None:
        """Make room if something was added."""
        if self._grown:
            self._files.trim()
            self._grown = False


def key(source: str, arch: str) -> str:
    """The name of the entry."""
    context = {"format": FORMAT, "options": nvrtc.options(arch), "packages": nvrtc.packages()}
    return hashlib.sha256("\n".join((json.dumps(context, sort_keys=True), source)).encode()).hexdigest()


def _written(compiled: nvrtc.Compiled) -> bytes:
    """The report as JSON, a zero byte, and the code."""
    report = {entry: asdict(used) for entry, used in compiled.resources.items()}
    return json.dumps(report).encode() + b"\0" + compiled.image


def _read(content: bytes) -> nvrtc.Compiled:
    report, _, image = content.partition(b"\0")
    used = {entry: nvrtc.Resources(**found) for entry, found in json.loads(report).items()}
    return nvrtc.Compiled(image, used)
