"""PoCL, which runs OpenCL on this CPU."""

from __future__ import annotations

import ctypes
from pathlib import Path

from graphopt.runtime.devices import host


def name_processor() -> None:
    """Let PoCL know this processor by a name that its compiler has.

    PoCL 3.0 holds LLVM 14, which calls every later processor "generic", and its own clang then refuses that name. The
    name is a string that PoCL's description of the device points to, and there is no option for it.
    """
    import pyopencl

    lines = (line.split() for line in Path("/proc/self/maps").read_text().splitlines())
    writable = [[int(end, 16) for end in place.split("-")] for place, rights, *_ in lines if rights.startswith("rw")]

    def held(address: int, size: int) -> bool:
        return any(first <= address and address + size <= last for first, last in writable)

    known = b"skx\0" if "avx512f" in host.features() else b"haswell\0"
    for platform in pyopencl.get_platforms():
        for device in platform.get_devices():
            for field in range(device.int_ptr, device.int_ptr + 1024, 8):
                text = ctypes.c_uint64.from_address(field).value if held(field, 8) else 0
                if held(text, 8) and ctypes.string_at(text, 8) == b"generic\0":
                    ctypes.memmove(text, known, len(known))
