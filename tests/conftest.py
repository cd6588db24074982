"""What holds for every test."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from graphopt.runtime.devices import host

if TYPE_CHECKING:
    from graphopt.runtime.devices.opencl import OpenClDevice

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
    from graphopt.runtime.devices.opencl import OpenClDevice

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

    known = b"skx\0" if "avx512f" in host.features() else b"haswell\0"
    for platform in pyopencl.get_platforms():
        for device in platform.get_devices():
            for field in range(device.int_ptr, device.int_ptr + 1024, 8):
                text = ctypes.c_uint64.from_address(field).value if held(field, 8) else 0
                if held(text, 8) and ctypes.string_at(text, 8) == b"generic\0":
                    ctypes.memmove(text, known, len(known))


class PaperDriver:
    """A driver of CUDA made of paper: it writes every call down, and does late what is enqueued.

    Device memory is host memory. Each stream is a list of actions that run when somebody waits for them and not before,
    so that a missing order shows as old numbers. `kernels[entry]` are functions of addresses; `fails` names calls that
    do not succeed; other calls succeed with a number.
    """

    def __init__(self) -> None:
        from cuda.bindings import driver as real

        self.real, self.capability, self.version = real, (9, 0), 13000
        self.calls: list[tuple[Any, ...]] = []
        self.fails: dict[str, Any] = {}
        self.kernels: dict[str, Callable[..., None]] = {}
        self.memories: dict[int, np.ndarray] = {}
        self.streams: dict[int, list[Callable[[], None]]] = {}
        self.done: dict[int, int] = {}
        self.events: dict[int, tuple[int, int]] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.names: dict[int, str] = {}
        self._capture: list[Callable[[], None]] | None = None
        self._number = 1000

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu"):
            return getattr(self.real, name)  # the enumerations

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, *arguments))
            if name in self.fails:
                return self.fails[name], None
            made = getattr(self, f"_{name}", None)
            found = made(*arguments) if made else self._new() if any(word in name for word in _MAKERS) else None
            status = self.real.CUresult.CUDA_SUCCESS
            return (status,) if found is None else (status, found)

        return call

    def named(self, name: str) -> list[tuple[Any, ...]]:
        """The arguments of every call of that name."""
        return [call[1:] for call in self.calls if call[0] == name]

    def enqueue(self, stream: Any, action: Callable[[], None]) -> None:
        """On a stream, or in the graph that is being captured."""
        (self.streams.setdefault(int(stream), []) if self._capture is None else self._capture).append(action)

    def wait(self, stream: Any, end: int | None = None) -> None:
        """Do what is enqueued on a stream, up to a place in it."""
        actions = self.streams.setdefault(int(stream), [])
        while self.done.setdefault(int(stream), 0) < (len(actions) if end is None else end):
            self.done[int(stream)] += 1
            actions[self.done[int(stream)] - 1]()

    def _new(self) -> int:
        self._number += 1
        return self._number

    def _cuDeviceGetName(self, *_: Any) -> bytes:
        return b"Paper GPU\0\0"

    def _cuDeviceGetAttribute(self, attribute: Any, _: Any) -> int:
        return self.capability["MINOR" in attribute.name] if "CAPABILITY" in attribute.name else 128

    def _cuDeviceTotalMem(self, _: Any) -> int:
        return 1 << 30

    def _cuDriverGetVersion(self) -> int:
        return self.version

    def _cuMemAlloc(self, nbytes: int) -> int:
        memory = np.full(min(nbytes, 1 << 20) + 64, 0xCC, np.uint8)
        start = memory.ctypes.data + -memory.ctypes.data % 64
        self.memories[start] = memory
        return int(start)

    def _cuMemHostAlloc(self, nbytes: int, _: int) -> int:
        return self._cuMemAlloc(nbytes)

    def _copy(self, target: int, source: int, nbytes: int, stream: Any) -> None:
        self.enqueue(stream, lambda: ctypes.memmove(target, source, nbytes) and None)

    _cuMemcpyHtoDAsync = _cuMemcpyDtoHAsync = _cuMemcpyDtoDAsync = _copy

    def _cuModuleGetFunction(self, _: Any, name: bytes) -> int:
        number = self._new()
        self.names[number] = name.decode()
        return number

    def _cuLaunchKernel(self, function: int, *rest: Any) -> None:
        run = self.kernels.get(self.names[function])
        if run is not None:
            self.enqueue(rest[7], lambda: run(*rest[8][0]))

    def _cuStreamBeginCapture(self, *_: Any) -> None:
        self._capture = []

    def _cuStreamEndCapture(self, _: Any) -> int:
        number = self._new()
        self.graphs[number], self._capture = self._capture or [], None
        return number

    def _cuGraphInstantiate(self, graph: int, _: int) -> int:
        return graph

    def _cuGraphLaunch(self, graph: int, stream: Any) -> None:
        self.enqueue(stream, lambda: [action() for action in self.graphs[graph]] and None)

    def _cuEventRecord(self, event: int, stream: Any) -> None:
        self.events[event] = int(stream), len(self.streams.get(int(stream), []))

    def _cuEventElapsedTime(self, *_: Any) -> float:
        return 2.5

    def _cuStreamWaitEvent(self, stream: Any, event: int, _: int) -> None:
        place = self.events[event]
        self.enqueue(stream, lambda: self.wait(*place))

    def _cuStreamSynchronize(self, stream: Any) -> None:
        self.wait(stream)


_MAKERS = ("Retain", "Create", "DeviceGet", "LoadData")


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> PaperDriver:
    """Stands in for NVIDIA's driver."""
    from cuda.bindings import nvrtc

    paper = PaperDriver()
    monkeypatch.setitem(sys.modules, "cuda.bindings", types.SimpleNamespace(driver=paper, nvrtc=nvrtc))
    return paper
