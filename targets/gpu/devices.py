"""What generated code and estimates must know about a GPU. Compiling needs no device, only its description."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from graphopt.errors import GraphoptError

OLDEST = 80
"""Compute capability (times ten) below which no code is generated: asynchronous copies and tf32 begin there."""

LARGEST_GRID = 65535
"""Blocks along the second and third axis of CUDA's grid."""


@dataclass(frozen=True, slots=True)
class GpuSpec:
    """A GPU. Sizes in bytes, rates in operations (a multiply-add is two) or bytes a second.

    `arch` is what code is generated for: "sm_90", or "opencl" where the driver compiles. `rates` are of dense GEMMs
    by dtype; "tf32" is float32 data through tensor cores. `registers` are 32-bit words.
    """

    name: str
    arch: str
    multiprocessors: int
    bandwidth: float
    rates: Mapping[str, float]
    l2_bytes: int
    shared_per_block: int
    shared_per_multiprocessor: int
    threads_per_multiprocessor: int = 2048
    blocks_per_multiprocessor: int = 32
    registers: int = 65536
    threads_per_block: int = 1024
    warp: int = 32

    @property
    def capability(self) -> int:
        """80 for sm_80, 90 for sm_90 and sm_90a; 0 where the architecture is none of NVIDIA's."""
        return int(self.arch.removeprefix("sm_").rstrip("a")) if self.arch.startswith("sm_") else 0

    @property
    def cuda(self) -> bool:
        """Whether code is CUDA, else OpenCL."""
        return self.capability > 0

    @property
    def warpgroups(self) -> bool:
        """Whether it has warpgroup MMA (wgmma): code for exactly this architecture, which runs on no later one."""
        return self.arch == "sm_90a"

    @property
    def tvm_target(self) -> dict[str, Any]:
        """The dictionary that `tvm.target.Target` takes."""
        if not self.cuda:
            limits = {"max_num_threads": self.threads_per_block, "max_threads_per_block": self.threads_per_block}
            return {"kind": "opencl", "max_shared_memory_per_block": self.shared_per_block, **limits}
        limits = {"max_num_threads": self.threads_per_block, "thread_warp_size": self.warp}
        return {"kind": "cuda", "arch": self.arch, **limits}


def _rates(**tera: float) -> Mapping[str, float]:
    return MappingProxyType({dtype: rate * 1e12 for dtype, rate in tera.items()})


_HOPPER = _rates(float32=66.9, float64=33.5, tf32=494.7, float16=989.4, bfloat16=989.4)

# The makers' data sheets: dense rates, without sparsity, of the SXM boards; limits from the CUDA programming guide.
DEVICES: Mapping[str, GpuSpec] = MappingProxyType(
    {
        device.name: device
        for device in (
            GpuSpec(
                "a100",
                "sm_80",
                108,
                2.039e12,
                _rates(float32=19.5, float64=9.7, tf32=156.0, float16=312.0, bfloat16=312.0),
                l2_bytes=40 << 20,
                shared_per_block=163 << 10,
                shared_per_multiprocessor=164 << 10,
            ),
            GpuSpec(
                "rtx4090",
                "sm_89",
                128,
                1.008e12,
                _rates(float32=82.6, float64=1.29, tf32=82.6, float16=165.2, bfloat16=165.2),
                l2_bytes=72 << 20,
                shared_per_block=99 << 10,
                shared_per_multiprocessor=100 << 10,
                threads_per_multiprocessor=1536,
                blocks_per_multiprocessor=24,
            ),
            GpuSpec("h100", "sm_90a", 132, 3.35e12, _HOPPER, 50 << 20, 227 << 10, 228 << 10),
            GpuSpec("h200", "sm_90a", 132, 4.8e12, _HOPPER, 50 << 20, 227 << 10, 228 << 10),
        )
    }
)

_REPRESENTATIVE = {"sm_80": "a100", "sm_89": "rtx4090", "sm_90": "h100", "sm_90a": "h100"}

OPENCL = GpuSpec(
    "opencl",
    "opencl",
    64,
    5e11,
    _rates(float32=10.0, float64=0.3, float16=20.0),
    l2_bytes=4 << 20,
    shared_per_block=32 << 10,
    shared_per_multiprocessor=64 << 10,
    threads_per_block=256,
)
"""A middling GPU with the least that OpenCL 3.0 devices offer: its code runs on all of them, tuned for none."""


def level_of(name: str, arch: str) -> str:
    """The `--level` that suits a GPU best, by what its driver calls it ("NVIDIA H100 80GB HBM3") and its architecture.

    Its own description, or the one that stands for its architecture, with what only that architecture has.
    """
    called = name.lower().replace(" ", "")
    fitting = (level for level, device in DEVICES.items() if device.arch.rstrip("a") == arch and level in called)
    return next(fitting, f"{arch}a" if f"{arch}a" in _REPRESENTATIVE else arch)


def find(name: str | None) -> GpuSpec:
    """The device called `name`, or the one that stands for an architecture ("sm_90"); None takes the H100.

    Raises:
        GraphoptError: no such device or architecture, or one that is too old.
    """
    wanted = "h100" if name is None else name.lower()
    if wanted in _REPRESENTATIVE:
        return replace(DEVICES[_REPRESENTATIVE[wanted]], arch=wanted)
    if wanted in DEVICES:
        return DEVICES[wanted]
    known = f"choose one of {', '.join((*DEVICES, *_REPRESENTATIVE))}"
    digits = wanted.removeprefix("sm_")
    if wanted.startswith("sm_") and digits.isdigit() and int(digits) < OLDEST:
        raise GraphoptError(f"--level {name} is too old: code is generated from sm_{OLDEST} on; {known}")
    raise GraphoptError(f"--level {name} is no GPU that is described here; {known}")
