"""A driver of CUDA made of paper."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np


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
