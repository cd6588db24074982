"""An NVIDIA GPU, through the driver API (the package cuda-bindings): no toolkit, no torch.

The steps of a stage are recorded once as a CUDA graph, so that a run costs the host one call.
"""

from __future__ import annotations

import ctypes
import re
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.errors import ArtifactError, GraphoptError
from graphopt.program.program import Launch
from graphopt.program.weights import Array
from graphopt.runtime.devices import dlpack

_INSTALL = "install it with pip install 'graphopt[cuda]'"
_STATIC_SHARED = 48 << 10
"""Bytes of shared memory that a kernel may use without an attribute."""
_HEAD_BYTES = 128 << 20
"""Bytes set before something is timed: that takes a GPU some 50 microseconds, and evicts useful data from its L2."""
_HEAD_STEPS = 2
"""Steps that the host enqueues while the GPU sets `_HEAD_BYTES`: one event and launch take it ten to twenty us."""
_VERSION = Path("/proc/driver/nvidia/version")


class CudaDevice:
    """The GPU that CUDA lists first (CUDA_VISIBLE_DEVICES chooses)."""

    def __init__(self, arch: str | None = None) -> None:
        """Open the GPU.

        Args:
            arch: "sm_90": the architecture of the kernels; None skips the check.

        Raises:
            GraphoptError: cuda-bindings or the driver is missing, or there is no GPU.
            ArtifactError: the GPU cannot run code for `arch`.
        """
        try:
            from cuda.bindings import driver
        except ImportError:
            raise GraphoptError(f"the package cuda-bindings is not installed; {_INSTALL}") from None
        self._driver = driver
        try:
            (status,) = driver.cuInit(0)
        except RuntimeError as error:
            raise GraphoptError(
                "there is no NVIDIA driver here; install it, or run this on a machine with a GPU"
            ) from error
        if status != driver.CUresult.CUDA_SUCCESS:
            raise GraphoptError(f"there is no NVIDIA GPU here ({status.name}); run this on a machine with one")
        self._device = self._call("cuDeviceGet", 0)
        self.name = self._call("cuDeviceGetName", 256, self._device).split(b"\0")[0].decode()
        self._capability = self._attribute("COMPUTE_CAPABILITY_MAJOR"), self._attribute("COMPUTE_CAPABILITY_MINOR")
        if arch is not None:
            self._require(arch)
        self._context = self._call("cuDevicePrimaryCtxRetain", self._device)
        self.activate()
        self._stream = self._call("cuStreamCreate", int(driver.CUstream_flags.CU_STREAM_NON_BLOCKING))
        self.dlpack: tuple[int, int] | None = (dlpack.CUDA, 0)
        self.stream: int | None = int(self._stream)
        self._modules: dict[bytes, Any] = {}
        self._head = 0
        self._handles: list[tuple[str, Any]] = [("cuStreamDestroy", self._stream)]
        finalizer = weakref.finalize(self, _release, driver, self._device, self._context, self._stream, self._handles)
        finalizer.atexit = False  # the end of the process frees everything, and the driver may be gone before

    def _attribute(self, name: str) -> int:
        kind = getattr(self._driver.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(self._call("cuDeviceGetAttribute", kind, self._device))

    def facts(self) -> dict[str, Any]:
        """Name, versions, multiprocessors and memory sizes of the GPU, as JSON values."""
        cuda = int(self._call("cuDriverGetVersion"))
        major, minor = self._capability
        return {
            "name": self.name,
            "arch": f"sm_{major}{minor}",
            "driver": _driver_version(),
            "cuda": f"{cuda // 1000}.{cuda % 1000 // 10}",
            "multiprocessors": self._attribute("MULTIPROCESSOR_COUNT"),
            "l2_bytes": self._attribute("L2_CACHE_SIZE"),
            "memory_bytes": int(self._call("cuDeviceTotalMem", self._device)),
        }

    def _require(self, arch: str) -> None:
        """Check that machine code for `arch` runs: same major version, lower or equal minor; sm_90a on 9.0 only."""
        major, minor = self._capability
        digits = arch.removeprefix("sm_").rstrip("a")
        built = divmod(int(digits), 10) if digits.isdigit() else (0, 0)
        exact = arch.endswith("a")
        if built[0] != major or built[1] > minor or (exact and built[1] != minor):
            raise ArtifactError(
                f"the artifact is for {arch} and {self.name} is sm_{major}{minor}: "
                f"compile it again with --target cuda --level sm_{major}{minor}"
            )

    def _call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the driver; returns its results without the status.

        Raises:
            GraphoptError: the status is an error.
        """
        status, *values = getattr(self._driver, name)(*arguments)
        results = self._driver.CUresult
        if status == results.CUDA_ERROR_OUT_OF_MEMORY:
            raise GraphoptError("the GPU has not enough free memory: take a smaller model or batch")
        if status == results.CUDA_ERROR_NO_BINARY_FOR_GPU:
            raise ArtifactError("the GPU cannot run this machine code: compile the model again for its architecture")
        if status in (results.CUDA_ERROR_INVALID_IMAGE, results.CUDA_ERROR_UNSUPPORTED_PTX_VERSION):
            raise ArtifactError("the NVIDIA driver is older than the machine code: update it")
        if status != results.CUDA_SUCCESS:
            raise GraphoptError(f"the GPU failed: {name} gives {status.name}")
        return values[0] if len(values) == 1 else tuple(values) if values else None

    def activate(self) -> None:
        """Make the GPU's context current in the calling thread."""
        self._call("cuCtxSetCurrent", self._context)

    def allocate(self, nbytes: int) -> int:
        """Uninitialised device memory; it lives as long as the device."""
        pointer = int(self._call("cuMemAlloc", max(nbytes, 1)))
        self._handles.append(("cuMemFree", pointer))
        return pointer

    def host(self, nbytes: int) -> Array:
        """Page-locked host memory, which the GPU copies by DMA."""
        pointer = int(self._call("cuMemHostAlloc", max(nbytes, 1), 0))
        self._handles.append(("cuMemFreeHost", pointer))
        raw = (ctypes.c_uint8 * max(nbytes, 1)).from_address(pointer)
        return np.ctypeslib.as_array(raw)[:nbytes]

    def upload(self, target: int, source: Array) -> None:
        """Enqueue a copy from host to device memory."""
        if source.nbytes:
            self._call("cuMemcpyHtoDAsync", target, source.ctypes.data, source.nbytes, self._stream)

    def download(self, target: Array, source: int) -> None:
        """Enqueue a copy from device to host memory."""
        if target.nbytes:
            self._call("cuMemcpyDtoHAsync", target.ctypes.data, source, target.nbytes, self._stream)

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Enqueue a copy within device memory."""
        if nbytes:
            self._call("cuMemcpyDtoDAsync", target, source, nbytes, self._stream)

    def follow(self, stream: int) -> None:
        """Let later work here wait for the current work on `stream`, by an event: the host does not wait."""
        self._order(stream, self._stream)

    def precede(self, stream: int) -> None:
        """Let later work on `stream` wait for the current work here, by an event: the host does not wait."""
        self._order(self._stream, stream)

    def _order(self, first: Any, second: Any) -> None:
        if int(first) == int(second):
            return
        event = self._call("cuEventCreate", int(self._driver.CUevent_flags.CU_EVENT_DISABLE_TIMING))
        try:
            self._call("cuEventRecord", event, self._driver.CUstream(int(first)))
            self._call("cuStreamWaitEvent", self._driver.CUstream(int(second)), event, 0)
        finally:
            self._call("cuEventDestroy", event)  # the driver keeps it until it has happened

    def fill(self, target: int, value: int, nbytes: int) -> None:
        """Enqueue setting `nbytes` bytes to `value`."""
        if nbytes:
            self._call("cuMemsetD8Async", target, value, nbytes, self._stream)

    def kernel(self, image: bytes, launch: Launch, pointers: Sequence[int]) -> Callable[[], None]:
        """A function that enqueues one launch of a kernel of the module `image`."""
        if image not in self._modules:
            self._modules[image] = self._call("cuModuleLoadData", image)
            self._handles.append(("cuModuleUnload", self._modules[image]))
        try:
            function = self._call("cuModuleGetFunction", self._modules[image], launch.entry.encode())
        except GraphoptError:
            raise ArtifactError(f"the artifact has no kernel {launch.entry}: it is damaged, compile it again") from None
        if launch.shared > _STATIC_SHARED:
            kind = self._driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._call("cuFuncSetAttribute", function, kind, launch.shared)
        values = tuple(pointers), (ctypes.c_void_p,) * len(pointers)

        def enqueue() -> None:
            self._call("cuLaunchKernel", function, *launch.grid, *launch.block, launch.shared, self._stream, values, 0)

        return enqueue

    def record(self, steps: Sequence[Callable[[], None]]) -> Callable[[], None]:
        """A function that enqueues all of `steps` as one CUDA graph."""
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("cuStreamBeginCapture", self._stream, mode)
        try:
            for step in steps:
                step()
        finally:
            graph = self._call("cuStreamEndCapture", self._stream)
        executable = self._call("cuGraphInstantiate", graph, 0)
        self._call("cuGraphDestroy", graph)
        self._handles.append(("cuGraphExecDestroy", executable))

        return lambda: self._call("cuGraphLaunch", executable, self._stream)

    def laps(self, steps: Sequence[Callable[[], None]]) -> list[float]:
        """Seconds of each of `steps` on the device, by events between them.

        The GPU is kept busy at first, so that the host runs ahead of it: otherwise a short step would take as long as
        enqueueing it.
        """
        if not steps:
            return []
        if not self._head:
            self._head = self.allocate(_HEAD_BYTES)
        flags = int(self._driver.CUevent_flags.CU_EVENT_DEFAULT)
        events = [self._call("cuEventCreate", flags) for _ in range(len(steps) + 1)]
        try:
            for _ in range(-(-len(steps) // _HEAD_STEPS)):
                self.fill(self._head, 0, _HEAD_BYTES)
            self._call("cuEventRecord", events[0], self._stream)
            for step, event in zip(steps, events[1:], strict=True):
                step()
                self._call("cuEventRecord", event, self._stream)
            self._call("cuEventSynchronize", events[-1])
            pairs = zip(events, events[1:], strict=False)
            return [float(self._call("cuEventElapsedTime", begin, end)) * 1e-3 for begin, end in pairs]
        finally:
            for event in events:
                self._call("cuEventDestroy", event)

    def synchronize(self) -> None:
        """Wait for everything that is enqueued."""
        self._call("cuStreamSynchronize", self._stream)


def _release(driver: Any, device: Any, context: Any, stream: Any, handles: list[tuple[str, Any]]) -> None:
    """Release the resources of a device, the last first; errors are ignored."""
    driver.cuCtxPushCurrent(context)
    driver.cuStreamSynchronize(stream)
    for function, handle in reversed(handles):
        getattr(driver, function)(handle)
    driver.cuCtxPopCurrent()
    driver.cuDevicePrimaryCtxRelease(device)


def _driver_version(file: Path = _VERSION) -> str | None:
    """Version of NVIDIA's driver, "580.65.06", from its kernel module, else from NVML; None without either."""
    try:
        match = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", file.read_text(encoding="ascii", errors="replace"))
        if match:
            return match.group()
    except OSError:
        pass
    text = ctypes.create_string_buffer(96)
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        nvml.nvmlInit_v2()
        failed = nvml.nvmlSystemGetDriverVersion(text, len(text))
    except (OSError, AttributeError):
        return None
    return text.value.decode(errors="replace") or None if not failed else None
