"""The CUDA compiler, without a GPU: machine code for each architecture, the assembler's report, occupancy."""

from __future__ import annotations

import sys

import pytest

from graphopt.errors import CodegenError, GraphoptError
from graphopt.targets.gpu import devices, nvrtc
from tests.helpers.occupancy import occupancy

SCALE = """
extern "C" __global__ void scale(float* y, const float* x) {
  __shared__ float line[256];
  line[threadIdx.x] = x[blockIdx.x * 256 + threadIdx.x];
  __syncthreads();
  y[blockIdx.x * 256 + threadIdx.x] = line[255 - threadIdx.x];
}
"""

SPILLING = """
extern "C" __global__ void __launch_bounds__(1024) spilling(float* y, int n) {
  float kept[200];
  #pragma unroll
  for (int i = 0; i < 200; ++i) kept[i] = y[i * n];
  #pragma unroll
  for (int i = 0; i < 200; ++i) y[i * n + 1] = kept[199 - i] * kept[(i * 7) % 200];
}
"""


@pytest.mark.parametrize("arch", ["sm_80", "sm_89", "sm_90"])
def test_machine_code_and_its_report(arch: str) -> None:
    made = nvrtc.compile_cuda(SCALE, arch)
    assert made.image[:4] == b"\x7fELF"
    found = made.resources["scale"]
    assert (found.shared, found.spilled, found.stack) == (1024, 0, 0)
    assert 4 <= found.registers <= 32


def test_the_same_source_is_the_same_code() -> None:
    assert nvrtc.compile_cuda(SCALE, "sm_90").image == nvrtc.compile_cuda(SCALE, "sm_90").image


def test_spills_are_seen() -> None:
    assert nvrtc.compile_cuda(SPILLING, "sm_80").resources["spilling"].spilled > 0


def test_an_error_is_said_with_its_line() -> None:
    with pytest.raises(CodegenError, match=r"kernels.cu\(1\): error: .*missing"):
        nvrtc.compile_cuda('extern "C" __global__ void f(float* y) { y[0] = missing; }', "sm_90")


def test_an_unknown_architecture() -> None:
    with pytest.raises(GraphoptError, match="the CUDA compiler knows no sm_12"):
        nvrtc.compile_cuda(SCALE, "sm_12")


def test_occupancy_by_hand() -> None:
    """On an A100 (65536 registers, 2048 threads, 164 KiB): 64 registers x 256 threads allow 4 blocks."""
    device = devices.DEVICES["a100"]
    assert nvrtc.Resources(64, 0, 0, 0).blocks(256, 0, device) == 4
    assert occupancy(nvrtc.Resources(64, 0, 0, 0), 256, 0, device) == 0.5
    assert occupancy(nvrtc.Resources(32, 0, 0, 0), 256, 0, device) == 1.0
    # 40 KiB and the KiB that the system takes, in 164 KiB
    assert nvrtc.Resources(32, 0, 0, 8 << 10).blocks(128, 32 << 10, device) == 4
    assert nvrtc.Resources(16, 0, 0, 0).blocks(32, 0, device) == device.blocks_per_multiprocessor


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    for ask in (lambda: nvrtc.compile_cuda(SCALE, "sm_90"), nvrtc.version):
        with pytest.raises(
            GraphoptError, match=r"the CUDA compiler is not installed; .*pip install 'graphopt\[cuda\]'"
        ):
            ask()


def test_without_the_headers_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(GraphoptError, match="the headers of the CUDA compiler are not installed"):
        nvrtc.compile_cuda(SCALE, "sm_90")


def test_version() -> None:
    assert nvrtc.version().startswith("13.")
