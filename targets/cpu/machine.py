"""The CPU that code is generated for: vector width, registers, caches, cores."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from graphopt.errors import GraphoptError
from graphopt.runtime.devices import host


@dataclass(frozen=True, slots=True)
class CpuLevel:
    """An x86-64 micro-architecture level: LLVM's name for it, the features that it requires, and its registers."""

    name: str
    mcpu: str
    features: tuple[str, ...]  # as /proc/cpuinfo spells them
    vector_bytes: int
    registers: int
    attributes: tuple[str, ...] = ()

    @property
    def vnni(self) -> bool:
        """Whether one instruction sums four products of bytes."""
        return not {"avx512_vnni", "avx_vnni"}.isdisjoint(self.features)


_AVX512 = ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
_AVX2 = ("avx2", "fma", "bmi1", "bmi2", "f16c", "movbe", "abm")
# LLVM splits 512-bit vectors in two by default on its x86-64-v4, which halves the throughput of full-width units.
LEVELS = {
    "avx512vnni": CpuLevel(
        "avx512vnni",
        "x86-64-v4",
        (*_AVX512, "avx512_vnni", *_AVX2),
        64,
        32,
        ("-prefer-256-bit", "+avx512vnni"),
    ),
    "avx512": CpuLevel("avx512", "x86-64-v4", (*_AVX512, *_AVX2), 64, 32, ("-prefer-256-bit",)),
    "avx2vnni": CpuLevel("avx2vnni", "x86-64-v3", (*_AVX2, "avx_vnni"), 32, 16, ("+avxvnni",)),
    "avx2": CpuLevel("avx2", "x86-64-v3", _AVX2, 32, 16),
    "x86-64": CpuLevel("x86-64", "x86-64", ("sse2",), 16, 16),
}


@dataclass(frozen=True, slots=True)
class CpuMachine:
    """The machine that kernels are generated for. Caches in bytes, per core."""

    level: CpuLevel
    cores: int
    l1_bytes: int = 32 << 10
    l2_bytes: int = 1 << 20

    def lanes(self, dtype: str = "float32") -> int:
        """Elements of `dtype` in one vector register."""
        return self.level.vector_bytes // {"float64": 8, "int64": 8, "float16": 4}.get(dtype, 4)

    @property
    def llvm_target(self) -> dict[str, object]:
        """The dictionary that `tvm.target.Target` takes."""
        target: dict[str, object] = {"kind": "llvm", "mcpu": self.level.mcpu, "num-cores": self.cores}
        if self.level.attributes:
            target["mattr"] = list(self.level.attributes)
        return target


def detect(level: str | None = None, cores: int | None = None) -> CpuMachine:
    """Describe this host, or the named level on it.

    Raises:
        GraphoptError: `level` is not one of `LEVELS`.
    """
    if level is not None and level not in LEVELS:
        raise GraphoptError(f"CPU level {level!r} is unknown; choose one of {', '.join(LEVELS)}.")
    flags = host.features()
    best = next((item for item in LEVELS.values() if flags.issuperset(item.features)), LEVELS["x86-64"])
    chosen = LEVELS[level] if level is not None else best
    return CpuMachine(
        chosen, cores or host.available_cpus(), _cache_bytes("index0", 32 << 10), _cache_bytes("index2", 1 << 20)
    )


def _cache_bytes(index: str, default: int) -> int:
    path = Path("/sys/devices/system/cpu/cpu0/cache") / index / "size"
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return default
    match = re.fullmatch(r"(\d+)([KM]?)", text)
    if match is None:
        return default
    return int(match.group(1)) << {"": 0, "K": 10, "M": 20}[match.group(2)]
