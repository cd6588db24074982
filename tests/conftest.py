"""What holds for every test."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from graphopt.runtime import cpu

if TYPE_CHECKING:
    from graphopt.runtime.opencl import OpenClDevice

_MADE = "GRAPHOPT_TEST_CODE_CACHE"


def pytest_configure() -> None:
    """Choose by estimates unless a test says otherwise: a measurement takes time and need not come out the same.

    Compiled code is kept in a folder of this run, which its worker processes share, and not in the user's cache.
    """
    os.environ.setdefault("GRAPHOPT_COSTS", "roofline")
    if _MADE not in os.environ:
        folder = tempfile.mkdtemp(prefix="graphopt-code-")
        os.environ["GRAPHOPT_CODE_CACHE"] = folder
        os.environ[_MADE] = str(os.getpid())


def pytest_unconfigure() -> None:
    """The process that made the folder removes it."""
    if os.environ.get(_MADE) == str(os.getpid()):
        shutil.rmtree(Path(os.environ["GRAPHOPT_CODE_CACHE"]), ignore_errors=True)
        del os.environ[_MADE], os.environ["GRAPHOPT_CODE_CACHE"]


@pytest.fixture(scope="session")
def opencl() -> OpenClDevice:
    """PoCL: OpenCL on this CPU, on which schedules for GPUs run without one."""
    from graphopt.runtime.opencl import OpenClDevice

    _name_processor()
    return OpenClDevice()


def _name_processor() -> None:
    """Let PoCL know this processor by a name that its compiler has.

    PoCL 3.0 holds LLVM 14, which calls every later processor "generic", and its own clang then refuses that name. The
    name is a string that PoCL's description of the device points to, and there is no option for it.
    """
    import pyopencl

    lines = (line.split() for line in Path("/proc/self/maps").read_text().splitlines())
    writable = [[int(end, 16) for end in place.split("-")] for place, rights, *_ in lines if rights.startswith("rw")]

    def held(address: int, size: int) -> bool:
        return any(first <= address and address + size <= last for first, last in writable)

    known = b"skx\0" if "avx512f" in cpu.features() else b"haswell\0"
    for platform in pyopencl.get_platforms():
        for device in platform.get_devices():
            for field in range(device.int_ptr, device.int_ptr + 1024, 8):
                text = ctypes.c_uint64.from_address(field).value if held(field, 8) else 0
                if held(text, 8) and ctypes.string_at(text, 8) == b"generic\0":
                    ctypes.memmove(text, known, len(known))
