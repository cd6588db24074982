"""An OpenCL device, through pyopencl: any vendor's GPU, or the CPU with PoCL (as in the tests)."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from graphopt.errors import ArtifactError, GraphoptError
from graphopt.program.program import Launch
from graphopt.program.weights import Array
from graphopt.runtime.devices import dlpack

_INSTALL = "install it with pip install 'graphopt[opencl]'"


class OpenClDevice:
    """The first device that shares pointers with the host (SVM), GPUs before CPUs."""

    def __init__(self) -> None:
        """Open the device.

        Raises:
            GraphoptError: pyopencl is not installed, or finds no such device.
        """
        try:
            import pyopencl as cl
        except ImportError:
            raise GraphoptError(f"the package pyopencl is not installed; {_INSTALL}") from None
        self._cl = cl
        device = _find(cl)
        self.name = f"{device.name.strip()} ({device.platform.name.strip()})"
        self._device = device
        # A CPU device uses the host's memory; that of a GPU would have to be mapped first.
        self.dlpack: tuple[int, int] | None = (dlpack.CPU, 0) if device.type & cl.device_type.CPU else None
        self.stream: int | None = None
        self._context = cl.Context([device])
        self._queue = cl.CommandQueue(self._context)
        self._programs: dict[bytes, Any] = {}
        self._memories: dict[int, Any] = {}

    def facts(self) -> dict[str, Any]:
        """Name, versions, compute units and memory sizes of the device, as JSON values."""
        return {
            "name": self.name,
            "arch": None,
            "driver": self._device.driver_version.strip(),
            "cuda": None,
            "multiprocessors": int(self._device.max_compute_units),
            "l2_bytes": int(self._device.global_mem_cache_size),
            "memory_bytes": int(self._device.global_mem_size),
        }

    def activate(self) -> None:
        """Does nothing: OpenCL has no current context."""

    def allocate(self, nbytes: int) -> int:
        """Uninitialised shared memory (SVM); it lives as long as the device."""
        cl = self._cl
        try:
            # Not bound to the queue: PoCL 3.0 frees a bad pointer when memory is freed in a queue.
            memory = cl.SVMAllocation(self._context, max(nbytes, 1), 0, cl.svm_mem_flags.READ_WRITE)
        except (cl.Error, MemoryError) as error:
            raise GraphoptError(
                f"{self.name} has no {nbytes >> 20} MiB of memory left: take a smaller model or batch"
            ) from error
        self._memories[memory.svm_ptr] = memory
        return int(memory.svm_ptr)

    def host(self, nbytes: int) -> Array:
        """Host memory, as bytes."""
        return np.empty(nbytes, np.uint8)

    def upload(self, target: int, source: Array) -> None:
        """Enqueue a copy from host to device memory."""
        if source.nbytes:
            given = source if source.flags.writeable else source.copy()  # pyopencl accepts no read-only array
            self._copy(_pointer(self._cl, target, source.nbytes), given)

    def download(self, target: Array, source: int) -> None:
        """Enqueue a copy from device to host memory."""
        if target.nbytes:
            self._copy(target, _pointer(self._cl, source, target.nbytes))

    def _copy(self, target: Any, source: Any) -> None:
        self._cl.enqueue_copy(self._queue, target, source, is_blocking=True)

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Enqueue a copy within device memory."""
        if nbytes:
            self._copy(_pointer(self._cl, target, nbytes), _pointer(self._cl, source, nbytes))

    def follow(self, stream: int) -> None:
        """Does nothing: other libraries have no queues here."""

    def precede(self, stream: int) -> None:
        """Let other libraries see the current work, by waiting for it."""
        self.synchronize()

    def fill(self, target: int, value: int, nbytes: int) -> None:
        """Enqueue setting `nbytes` bytes to `value`."""
        self.upload(target, np.full(nbytes, value, np.uint8))

    def kernel(self, image: bytes, launch: Launch, pointers: Sequence[int]) -> Callable[[], None]:
        """A function that enqueues one launch of a kernel of the program `image`."""
        cl = self._cl
        try:
            if image not in self._programs:
                self._programs[image] = cl.Program(self._context, image.decode()).build()
            kernel = cl.Kernel(self._programs[image], launch.entry)  # one per call: it holds its arguments
            for position, pointer in enumerate(pointers):
                kernel.set_arg(position, _pointer(cl, pointer, 1))
        except (cl.Error, UnicodeDecodeError) as error:
            raise ArtifactError(f"kernel {launch.entry} cannot be loaded on {self.name} ({_reason(error)})") from error
        threads = int(np.prod(launch.block))
        if threads > self._device.max_work_group_size or launch.shared > self._device.local_mem_size:
            raise ArtifactError(
                f"kernel {launch.entry} needs {threads} threads and {launch.shared} bytes of local memory in a group, "
                f"more than {self.name} has"
            )
        count = [grid * block for grid, block in zip(launch.grid, launch.block, strict=True)]

        def enqueue() -> None:
            cl.enqueue_nd_range_kernel(self._queue, kernel, count, launch.block)

        return enqueue

    def record(self, steps: Sequence[Callable[[], None]]) -> Callable[[], None]:
        """A function that enqueues `steps` one by one."""

        def enqueue() -> None:
            for step in steps:
                step()

        return enqueue

    def laps(self, steps: Sequence[Callable[[], None]]) -> list[float]:
        """Seconds of each of `steps`, by the host's clock."""
        seconds = []
        for step in steps:
            self.synchronize()
            start = time.perf_counter()
            step()
            self.synchronize()
            seconds.append(time.perf_counter() - start)
        return seconds

    def synchronize(self) -> None:
        """Wait for everything that is enqueued."""
        try:
            self._queue.finish()
        except self._cl.Error as error:
            raise GraphoptError(f"{self.name} failed ({' '.join(str(error).split())[:200]})") from error


def _find(cl: Any) -> Any:
    try:
        devices = [device for platform in cl.get_platforms() for device in platform.get_devices()]
    except cl.Error:
        devices = []
    shared = cl.device_svm_capabilities.COARSE_GRAIN_BUFFER
    usable = [device for device in devices if device.get_info(cl.device_info.SVM_CAPABILITIES) & shared]
    if not usable:
        raise GraphoptError(
            "there is no OpenCL device here: install the driver of yours, or pip install 'pyopencl[pocl]' for the CPU"
        )
    return min(usable, key=lambda device: not device.type & cl.device_type.GPU)


def _reason(error: Exception) -> str:
    """The first error in the log of the driver's compiler, or the complete log."""
    lines = [" ".join(line.split()) for line in str(error).splitlines()]
    return next((line for line in lines if line.startswith("error:")), " ".join(lines))[:200]


def _pointer(cl: Any, address: int, nbytes: int) -> Any:
    """A kernel argument at any address of shared memory; the host never accesses it."""
    return cl.SVM((ctypes.c_uint8 * nbytes).from_address(address))
