"""An NVIDIA GPU, through the driver's own interface (the package cuda-bindings): no toolkit, no torch.

What a stage enqueues is recorded once as a CUDA graph, so that a run costs the host one call.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from graphopt.errors import ArtifactError, GraphoptError
from graphopt.program import Launch
from graphopt.weights import Array

_INSTALL = "install it with pip install 'graphopt[cuda]'"
_STATIC_SHARED = 48 << 10
"""Bytes of shared memory that a kernel may use without asking."""


class CudaDevice:
    """The GPU that CUDA lists first (CUDA_VISIBLE_DEVICES chooses)."""

    def __init__(self, arch: str) -> None:
        """Open it.

        Args:
            arch: "sm_90": what the kernels were compiled for.

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
                "there is no NVIDIA driver here; install it, or run this artifact on a machine with a GPU"
            ) from error
        if status != driver.CUresult.CUDA_SUCCESS:
            raise GraphoptError(f"there is no NVIDIA GPU here ({status.name}); run this artifact on a machine with one")
        self._device = self._call("cuDeviceGet", 0)
        self.name = self._call("cuDeviceGetName", 256, self._device).split(b"\0")[0].decode()
        self._require(arch)
        self._context = self._call("cuDevicePrimaryCtxRetain", self._device)
        self.activate()
        self._stream = self._call("cuStreamCreate", int(driver.CUstream_flags.CU_STREAM_NON_BLOCKING))
        self._modules: dict[bytes, Any] = {}

    def _require(self, arch: str) -> None:
        """Machine code runs on its own major version, from its own minor one on; of sm_90a on 9.0 alone."""
        kind = self._driver.CUdevice_attribute
        major = self._call("cuDeviceGetAttribute", kind.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, self._device)
        minor = self._call("cuDeviceGetAttribute", kind.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, self._device)
        digits = arch.removeprefix("sm_").rstrip("a")
        built = divmod(int(digits), 10) if digits.isdigit() else (0, 0)
        exact = arch.endswith("a")
        if built[0] != major or built[1] > minor or (exact and built[1] != minor):
            raise ArtifactError(
                f"the artifact is for {arch} and {self.name} is sm_{major}{minor}: "
                f"compile it again with --target cuda --level sm_{major}{minor}"
            )

    def _call(self, name: str, *arguments: Any) -> Any:
        """What a function of the driver returns besides its status.

        Raises:
            GraphoptError: the status says that it failed.
        """
        status, *found = getattr(self._driver, name)(*arguments)
        results = self._driver.CUresult
        if status == results.CUDA_ERROR_OUT_OF_MEMORY:
            raise GraphoptError("the GPU has not enough free memory: take a smaller model or batch")
        if status == results.CUDA_ERROR_NO_BINARY_FOR_GPU:
            raise ArtifactError("the GPU cannot run this machine code: compile the model again for its architecture")
        if status in (results.CUDA_ERROR_INVALID_IMAGE, results.CUDA_ERROR_UNSUPPORTED_PTX_VERSION):
            raise ArtifactError("the NVIDIA driver is older than the machine code: update it")
        if status != results.CUDA_SUCCESS:
            raise GraphoptError(f"the GPU failed: {name} gives {status.name}")
        return found[0] if len(found) == 1 else tuple(found) if found else None

    def activate(self) -> None:
        """As `Device` says."""
        self._call("cuCtxSetCurrent", self._context)

    def allocate(self, nbytes: int) -> int:
        """As `Device` says; it lives as long as the device."""
        return int(self._call("cuMemAlloc", max(nbytes, 1)))

    def host(self, nbytes: int) -> Array:
        """As `Device` says: page-locked, so that the GPU copies it by itself."""
        pointer = int(self._call("cuMemHostAlloc", max(nbytes, 1), 0))
        raw = (ctypes.c_uint8 * max(nbytes, 1)).from_address(pointer)
        return np.ctypeslib.as_array(raw)[:nbytes]

    def upload(self, target: int, source: Array) -> None:
        """As `Device` says."""
        if source.nbytes:
            self._call("cuMemcpyHtoDAsync", target, source.ctypes.data, source.nbytes, self._stream)

    def download(self, target: Array, source: int) -> None:
        """As `Device` says."""
        if target.nbytes:
            self._call("cuMemcpyDtoHAsync", target.ctypes.data, source, target.nbytes, self._stream)

    def fill(self, target: int, value: int, nbytes: int) -> None:
        """As `Device` says."""
        if nbytes:
            self._call("cuMemsetD8Async", target, value, nbytes, self._stream)

    def kernel(self, image: bytes, launch: Launch, pointers: Sequence[int]) -> Callable[[], None]:
        """As `Device` says."""
        if image not in self._modules:
            self._modules[image] = self._call("cuModuleLoadData", image)
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
        """As `Device` says: as one CUDA graph."""
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("cuStreamBeginCapture", self._stream, mode)
        try:
            for step in steps:
                step()
        finally:
            graph = self._call("cuStreamEndCapture", self._stream)
        executable = self._call("cuGraphInstantiate", graph, 0)
        self._call("cuGraphDestroy", graph)

        return lambda: self._call("cuGraphLaunch", executable, self._stream)

    def time(self, step: Callable[[], None]) -> float:
        """As `Device` says, by events on the device."""
        flags = int(self._driver.CUevent_flags.CU_EVENT_DEFAULT)
        begin, end = self._call("cuEventCreate", flags), self._call("cuEventCreate", flags)
        self._call("cuEventRecord", begin, self._stream)
        step()
        self._call("cuEventRecord", end, self._stream)
        self._call("cuEventSynchronize", end)
        milliseconds = self._call("cuEventElapsedTime", begin, end)
        for event in (begin, end):
            self._call("cuEventDestroy", event)
        return float(milliseconds) * 1e-3

    def synchronize(self) -> None:
        """As `Device` says."""
        self._call("cuStreamSynchronize", self._stream)
