"""CUDA source -> machine code, by NVIDIA's run-time compiler: a pip package, no toolkit and no host compiler.

What the assembler reports of every kernel (registers, spills, shared memory) comes back with the code.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from graphopt.errors import CodegenError, GraphoptError
from graphopt.targets.gpu.devices import GpuSpec

_INSTALL = "install graphopt with its CUDA compiler: pip install 'graphopt[cuda]'"


@dataclass(frozen=True, slots=True)
class Resources:
    """What one kernel needs: registers per thread, bytes a thread spills (stored and loaded), static shared memory."""

    registers: int
    spilled: int
    stack: int
    shared: int

    def blocks(self, threads: int, dynamic: int, device: GpuSpec) -> int:
        """Blocks of `threads` with `dynamic` bytes of shared memory that fit on one multiprocessor at a time.

        Source: the occupancy calculation of the CUDA C++ programming guide. Registers are given out in units of 256 to
        a warp, shared memory in units of 128 bytes, of which each block takes 1 KiB more.
        """
        warps = -(-threads // device.warp)
        of_registers = device.registers // (warps * -(-self.registers * device.warp // 256) * 256)
        shared = -(-(self.shared + dynamic + 1024) // 128) * 128
        of_shared = device.shared_per_multiprocessor // shared
        of_threads = device.threads_per_multiprocessor // (warps * device.warp)
        return min(of_registers, of_shared, of_threads, device.blocks_per_multiprocessor)


@dataclass(frozen=True, slots=True)
class Compiled:
    """A cubin, and the resources of each of its kernels."""

    image: bytes
    resources: Mapping[str, Resources]


def compile_cuda(source: str, arch: str) -> Compiled:
    """Compile for one architecture ("sm_90"); IEEE arithmetic, with fused multiply-adds.

    Raises:
        GraphoptError: the compiler is not installed, or does not know `arch`.
        CodegenError: the source has errors; with the compiler's log.
    """
    try:
        from cuda.bindings import nvrtc
    except ImportError:
        raise GraphoptError(f"the CUDA compiler is not installed; {_INSTALL}") from None
    encoded = [option.encode() for option in (*options(arch), *(f"-I{folder}" for folder in _include()))]
    success = nvrtc.nvrtcResult.NVRTC_SUCCESS
    try:
        _, program = nvrtc.nvrtcCreateProgram(source.encode(), b"kernels.cu", 0, [], [])
    except RuntimeError as error:  # the package of the compiler itself is missing
        raise GraphoptError(f"the CUDA compiler cannot be loaded ({_short(str(error))}); {_INSTALL}") from error
    try:
        (result,) = nvrtc.nvrtcCompileProgram(program, len(encoded), encoded)
        _, size = nvrtc.nvrtcGetProgramLogSize(program)
        buffer = b" " * size
        nvrtc.nvrtcGetProgramLog(program, buffer)
        log = buffer.decode(errors="replace").rstrip("\0 \n")
        if result == nvrtc.nvrtcResult.NVRTC_ERROR_INVALID_OPTION:
            raise GraphoptError(f"the CUDA compiler knows no {arch} ({_short(log)}); choose another --level")
        if result != success:
            raise CodegenError(f"the CUDA compiler refuses a kernel: {_first_error(log)}")
        _, size = nvrtc.nvrtcGetCUBINSize(program)
        image = b" " * size
        nvrtc.nvrtcGetCUBIN(program, image)
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return Compiled(image, parse_report(log))


def options(arch: str) -> tuple[str, ...]:
    """The compiler's options, besides the folders of its headers."""
    return f"--gpu-architecture={arch}", "--std=c++17", "--ptxas-options=-v", "-default-device"


@functools.cache
def packages() -> dict[str, str]:
    """The versions of the compiler and of its headers: with source and options all that machine code depends on.

    Raises:
        GraphoptError: the compiler is not installed.
    """
    versions = {"nvrtc": version()}
    for name in ("nvidia-cuda-nvrtc", "nvidia-cuda-runtime", "nvidia-cuda-cccl"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def version() -> str:
    """Version of the compiler, as "13.0"; machine code depends on it.

    Raises:
        GraphoptError: it is not installed.
    """
    try:
        from cuda.bindings import nvrtc

        _, major, minor = nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError):
        raise GraphoptError(f"the CUDA compiler is not installed; {_INSTALL}") from None
    return f"{major}.{minor}"


def _include() -> list[Path]:
    """CUDA's headers, which pip packages share one folder for."""
    spec = importlib.util.find_spec("nvidia")
    for place in (spec.submodule_search_locations if spec is not None else None) or ():
        folder = Path(place) / "cu13" / "include"
        if (folder / "cuda_fp16.h").is_file() and (folder / "cccl").is_dir():
            return [folder, folder / "cccl"]
    raise GraphoptError(f"the headers of the CUDA compiler are not installed; {_INSTALL}")


_ENTRY = re.compile(r"Compiling entry function '(\w+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


def parse_report(log: str) -> dict[str, Resources]:
    """The resources of every kernel, from the assembler's report (ptxas -v)."""
    resources: dict[str, Resources] = {}
    for part in re.split(r"(?=Compiling entry function)", log):
        entry = _ENTRY.search(part)
        used = _USED.search(part)
        if entry is None or used is None:
            continue
        stack = _STACK.search(part)
        shared = _SHARED.search(part)
        frame, stores, loads = (int(text) for text in stack.groups()) if stack is not None else (0, 0, 0)
        shared_bytes = int(shared.group(1)) if shared is not None else 0
        resources[entry.group(1)] = Resources(int(used.group(1)), stores + loads, frame, shared_bytes)
    return resources


def _first_error(log: str) -> str:
    lines = [line for line in log.splitlines() if "error" in line]
    return _short(lines[0] if lines else log)


def _short(text: str) -> str:
    return " ".join(text.split())[:200]
