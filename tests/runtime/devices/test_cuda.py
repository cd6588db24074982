"""What the CUDA device asks of the driver, held by a driver made of paper: no test here needs a GPU."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
from cuda.bindings import driver as real

from graphopt.errors import ArtifactError, GraphoptError
from graphopt.program.program import Launch
from graphopt.runtime.devices.cuda import CudaDevice, _driver_version

Result = real.CUresult


@pytest.mark.parametrize(
    ("arch", "capability"), [("sm_90", (9, 0)), ("sm_80", (8, 9)), ("sm_89", (8, 9)), ("sm_90a", (9, 0))]
)
def test_machine_code_runs_on_its_major_version(driver: Any, arch: str, capability: tuple[int, int]) -> None:
    driver.capability = capability
    assert CudaDevice(arch).name == "Paper GPU"


@pytest.mark.parametrize(
    ("arch", "capability", "here"),
    [("sm_90", (8, 0), "sm_80"), ("sm_80", (9, 0), "sm_90"), ("sm_89", (8, 0), "sm_80"), ("mips", (9, 0), "sm_90")],
)
def test_other_machine_code_is_refused(driver: Any, arch: str, capability: tuple[int, int], here: str) -> None:
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
def test_a_device_that_does_not_open(driver: Any, call: str, status: Any, sentence: str) -> None:
    driver.fails[call] = status
    if call == "cuInit":
        driver.__dict__["cuInit"] = lambda _: (status,)
    with pytest.raises(GraphoptError, match=sentence):
        CudaDevice("sm_90")


def test_memory_that_is_not_there(driver: Any) -> None:
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
def test_images_that_cannot_be_used(driver: Any, call: str, status: Any, sentence: str) -> None:
    device = CudaDevice("sm_90")
    driver.fails[call] = status
    with pytest.raises(ArtifactError, match=sentence):
        device.kernel(b"image", LAUNCH, [1, 2])


def test_an_image_is_loaded_once_and_launched_as_it_says(driver: Any) -> None:
    device = CudaDevice("sm_90")
    for _ in range(2):
        device.kernel(b"image", LAUNCH, [4096, 8192])()
    assert driver.named("cuModuleLoadData") == [(b"image",)]
    (first, second) = driver.named("cuLaunchKernel")
    assert first[1:8] == second[1:8] == (3, 2, 1, 64, 1, 1, 0)
    assert first[9][0] == (4096, 8192)
    assert driver.named("cuFuncSetAttribute") == []


def test_much_shared_memory_is_asked_for(driver: Any) -> None:
    large = Launch("entry", (1, 1, 1), (64, 1, 1), (0,), 100 << 10)
    CudaDevice("sm_90").kernel(b"image", large, [4096])
    ((_, attribute, size),) = driver.named("cuFuncSetAttribute")
    assert (attribute.name, size) == ("CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES", 100 << 10)


def test_steps_are_recorded_as_one_graph(driver: Any) -> None:
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


def test_a_failing_step_ends_the_recording(driver: Any) -> None:
    device = CudaDevice("sm_90")

    def fail() -> None:
        raise GraphoptError("no")

    with pytest.raises(GraphoptError, match="no"):
        device.record([fail])
    assert len(driver.named("cuStreamEndCapture")) == 1


def test_copies(driver: Any) -> None:
    device = CudaDevice("sm_90")
    array, pointer = device.host(256), device.allocate(256)
    assert array.nbytes == 256
    device.upload(pointer, array)
    device.download(array, pointer)
    device.copy(pointer, pointer + 128, 128)
    device.upload(pointer, array[:0])  # nothing to copy
    assert driver.named("cuMemcpyHtoDAsync") == [(pointer, array.ctypes.data, 256, device.stream)]
    assert driver.named("cuMemcpyDtoHAsync") == [(array.ctypes.data, pointer, 256, device.stream)]
    assert driver.named("cuMemcpyDtoDAsync") == [(pointer, pointer + 128, 128, device.stream)]


def test_laps_are_between_events_that_the_host_does_not_wait_for(driver: Any) -> None:
    device = CudaDevice("sm_90")
    before = len(driver.calls)
    assert device.laps([lambda: driver.calls.append(("step",))] * 5) == [2.5e-3] * 5
    assert device.laps([]) == []
    names = [call[0] for call in driver.calls[before:]]
    assert names.count("cuEventCreate") == names.count("cuEventRecord") == names.count("cuEventDestroy") == 6
    order = [name for name in names if name in ("step", "cuEventRecord", "cuEventSynchronize", "cuMemsetD8Async")]
    head = order.index("cuEventRecord")
    assert set(order[:head]) == {"cuMemsetD8Async"}  # the device is busy until the host has enqueued the steps
    assert order[head:] == ["cuEventRecord", *["step", "cuEventRecord"] * 5, "cuEventSynchronize"]


def test_a_device_that_fails_gives_its_events_back(driver: Any) -> None:
    device = CudaDevice("sm_90")
    driver.fails["cuEventElapsedTime"] = Result.CUDA_ERROR_ILLEGAL_ADDRESS
    with pytest.raises(GraphoptError, match="cuEventElapsedTime gives CUDA_ERROR_ILLEGAL_ADDRESS"):
        device.laps([lambda: None])
    assert len(driver.named("cuEventDestroy")) == 2


def test_streams_wait_for_each_other_by_events(driver: Any) -> None:
    device = CudaDevice("sm_90")
    device.follow(7)
    device.precede(1)
    device.precede(device.stream or 0)  # a stream follows itself
    recorded = [int(stream) for _, stream in driver.named("cuEventRecord")]
    waiting = [(int(stream), flags) for stream, _, flags in driver.named("cuStreamWaitEvent")]
    assert recorded == [7, device.stream]
    assert waiting == [(device.stream, 0), (1, 0)]
    assert len(driver.named("cuEventDestroy")) == 2
    assert driver.named("cuStreamSynchronize") == []


def test_a_device_that_is_not_used_any_more_gives_all_back(driver: Any) -> None:
    device = CudaDevice("sm_90")
    device.allocate(64)
    device.host(64)
    device.record([device.kernel(b"image", LAUNCH, [1, 2])])
    del device
    gc.collect()
    names = [call[0] for call in driver.calls]
    for made, freed in (
        ("cuMemAlloc", "cuMemFree"),
        ("cuMemHostAlloc", "cuMemFreeHost"),
        ("cuModuleLoadData", "cuModuleUnload"),
        ("cuGraphInstantiate", "cuGraphExecDestroy"),
        ("cuStreamCreate", "cuStreamDestroy"),
        ("cuDevicePrimaryCtxRetain", "cuDevicePrimaryCtxRelease"),
    ):
        assert names.count(made) == names.count(freed) == 1
    assert names[-3:] == ["cuStreamDestroy", "cuCtxPopCurrent", "cuDevicePrimaryCtxRelease"]


def test_facts(driver: Any) -> None:
    driver.version = 13000
    facts = CudaDevice().facts()
    assert (facts["name"], facts["arch"], facts["cuda"]) == ("Paper GPU", "sm_90", "13.0")
    assert facts["l2_bytes"] > 0
    assert facts["memory_bytes"] > 0


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27\nGCC version:  gcc 12.3.0",
            "580.65.06",
        ),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  575.57.08  Release Build", "575.57.08"),
        ("nothing", None),
        (None, None),
    ],
)
def test_the_version_of_the_driver(text: str | None, version: str | None, tmp_path: Path) -> None:
    file = tmp_path / "version"
    if text is not None:
        file.write_text(text)
    assert _driver_version(file) == version
