"""What the CUDA device asks of the driver, held by a driver made of paper: no test here needs a GPU."""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import pytest
from cuda.bindings import driver as real

from graphopt.errors import ArtifactError, GraphoptError
from graphopt.program import Launch
from graphopt.runtime.cuda import CudaDevice

Result = real.CUresult


class PaperDriver:
    """Answers every call with success and a number, and writes it down; `fails` names calls that do not succeed."""

    def __init__(self, capability: tuple[int, int] = (9, 0)) -> None:
        self.capability, self.calls = capability, []  # type: tuple[int, int], list[tuple[Any, ...]]
        self.fails: dict[str, Any] = {}
        self.host = np.zeros(4096, np.uint8)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu"):
            return getattr(real, name)  # the enumerations

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, *arguments))
            if name in self.fails:
                return self.fails[name], None
            if name == "cuDeviceGetName":
                return Result.CUDA_SUCCESS, b"Paper GPU\0\0"
            if name == "cuDeviceGetAttribute":
                return Result.CUDA_SUCCESS, self.capability["MINOR" in arguments[0].name]
            if name == "cuMemHostAlloc":
                return Result.CUDA_SUCCESS, self.host.ctypes.data
            if name == "cuEventElapsedTime":
                return Result.CUDA_SUCCESS, 2.5
            return (Result.CUDA_SUCCESS, 4096) if any(word in name for word in MAKERS) else (Result.CUDA_SUCCESS,)

        return call

    def named(self, name: str) -> list[tuple[Any, ...]]:
        return [call[1:] for call in self.calls if call[0] == name]


MAKERS = ("Alloc", "Retain", "Create", "DeviceGet", "LoadData", "GetFunction", "EndCapture", "Instantiate")


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> PaperDriver:
    paper = PaperDriver()
    monkeypatch.setitem(__import__("sys").modules, "cuda.bindings", types.SimpleNamespace(driver=paper))
    return paper


@pytest.mark.parametrize(
    ("arch", "capability"), [("sm_90", (9, 0)), ("sm_80", (8, 9)), ("sm_89", (8, 9)), ("sm_90a", (9, 0))]
)
def test_machine_code_runs_on_its_major_version(driver: PaperDriver, arch: str, capability: tuple[int, int]) -> None:
    driver.capability = capability
    assert CudaDevice(arch).name == "Paper GPU"


@pytest.mark.parametrize(
    ("arch", "capability", "here"),
    [("sm_90", (8, 0), "sm_80"), ("sm_80", (9, 0), "sm_90"), ("sm_89", (8, 0), "sm_80"), ("mips", (9, 0), "sm_90")],
)
def test_other_machine_code_is_refused(driver: PaperDriver, arch: str, capability: tuple[int, int], here: str) -> None:
    driver.capability = capability
    with pytest.raises(ArtifactError, match=f"is for {arch} and Paper GPU is {here}: compile it again with .* {here}$"):
        CudaDevice(arch)


@pytest.mark.parametrize(
    ("call", "status", "sentence"),
    [
        ("cuInit", Result.CUDA_ERROR_NO_DEVICE, r"there is no NVIDIA GPU here \(CUDA_ERROR_NO_DEVICE\); run this"),
        ("cuStreamCreate", Result.CUDA_ERROR_UNKNOWN, "the GPU failed: cuStreamCreate gives CUDA_ERROR_UNKNOWN"),
    ],
)
def test_a_device_that_does_not_open(driver: PaperDriver, call: str, status: Any, sentence: str) -> None:
    driver.fails[call] = status
    if call == "cuInit":
        driver.__dict__["cuInit"] = lambda _: (status,)
    with pytest.raises(GraphoptError, match=sentence):
        CudaDevice("sm_90")


def test_memory_that_is_not_there(driver: PaperDriver) -> None:
    device = CudaDevice("sm_90")
    driver.fails["cuMemAlloc"] = Result.CUDA_ERROR_OUT_OF_MEMORY
    with pytest.raises(GraphoptError, match="the GPU has not enough free memory: take a smaller model or batch"):
        device.allocate(1 << 40)


LAUNCH = Launch("entry", (3, 2, 1), (64, 1, 1), (0, 1), 0)


@pytest.mark.parametrize(
    ("call", "status", "sentence"),
    [
        (
            "cuModuleLoadData",
            Result.CUDA_ERROR_NO_BINARY_FOR_GPU,
            "cannot run this machine code: compile the model again",
        ),
        ("cuModuleLoadData", Result.CUDA_ERROR_INVALID_IMAGE, "driver is older than the machine code: update it"),
        ("cuModuleGetFunction", Result.CUDA_ERROR_NOT_FOUND, "has no kernel entry: it is damaged"),
    ],
)
def test_images_that_cannot_be_used(driver: PaperDriver, call: str, status: Any, sentence: str) -> None:
    device = CudaDevice("sm_90")
    driver.fails[call] = status
    with pytest.raises(ArtifactError, match=sentence):
        device.kernel(b"image", LAUNCH, [1, 2])


def test_an_image_is_loaded_once_and_launched_as_it_says(driver: PaperDriver) -> None:
    device = CudaDevice("sm_90")
    for _ in range(2):
        device.kernel(b"image", LAUNCH, [4096, 8192])()
    assert driver.named("cuModuleLoadData") == [(b"image",)]
    (first, second) = driver.named("cuLaunchKernel")
    assert first[1:8] == second[1:8] == (3, 2, 1, 64, 1, 1, 0)
    assert first[9][0] == (4096, 8192)
    assert driver.named("cuFuncSetAttribute") == []


def test_much_shared_memory_is_asked_for(driver: PaperDriver) -> None:
    large = Launch("entry", (1, 1, 1), (64, 1, 1), (0,), 100 << 10)
    CudaDevice("sm_90").kernel(b"image", large, [4096])
    ((_, attribute, size),) = driver.named("cuFuncSetAttribute")
    assert (attribute.name, size) == ("CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES", 100 << 10)


def test_steps_are_recorded_as_one_graph(driver: PaperDriver) -> None:
    device = CudaDevice("sm_90")
    step = device.kernel(b"image", LAUNCH, [1, 2])
    whole = device.record([step, step])
    assert len(driver.named("cuLaunchKernel")) == 2
    names = [call[0] for call in driver.calls]
    assert names.index("cuStreamBeginCapture") < names.index("cuLaunchKernel") < names.index("cuStreamEndCapture")
    whole()
    whole()
    assert len(driver.named("cuLaunchKernel")) == 2
    assert len(driver.named("cuGraphLaunch")) == 2


def test_a_failing_step_ends_the_recording(driver: PaperDriver) -> None:
    device = CudaDevice("sm_90")

    def fail() -> None:
        raise GraphoptError("no")

    with pytest.raises(GraphoptError, match="no"):
        device.record([fail])
    assert len(driver.named("cuStreamEndCapture")) == 1


def test_copies_and_times(driver: PaperDriver) -> None:
    device = CudaDevice("sm_90")
    array = device.host(256)
    assert array.nbytes == 256
    device.upload(4096, array)
    device.download(array, 4096)
    device.upload(4096, array[:0])  # nothing to copy
    assert driver.named("cuMemcpyHtoDAsync") == [(4096, array.ctypes.data, 256, 4096)]
    assert driver.named("cuMemcpyDtoHAsync") == [(array.ctypes.data, 4096, 256, 4096)]
    assert device.time(lambda: None) == 2.5e-3
