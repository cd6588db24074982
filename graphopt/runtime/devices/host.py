"""The processor of this machine: instruction sets, cores, and the CPUs this process may use."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def architecture() -> str:
    """The name of the instruction set, as in `uname -m`: x86_64, aarch64."""
    return platform.machine()


def features(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The flags of the first processor in /proc/cpuinfo, such as `avx2`; empty where there is no such file."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        key, _, flags = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(flags.split())
    return frozenset()


def model_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Model name of the first processor; the architecture where there is none."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), architecture())


def available_cpus() -> int:
    """Processors this process may run on: its affinity mask, cut by the CPU quota of its control group."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(count, _quota(count)))


def default_threads() -> int:
    """Default threads of a session: one per physical core it may use.

    Two threads on one core share its vector units, so counting hardware threads makes dense kernels slower.
    """
    if not hasattr(os, "sched_getaffinity"):
        return available_cpus()
    cores = {_siblings(cpu) for cpu in os.sched_getaffinity(0)}
    return max(1, min(len(cores), available_cpus()))


def _siblings(cpu: int) -> str:
    try:
        return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _quota(otherwise: int) -> int:
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return otherwise if limit == "max" else -(-int(limit) // int(period))
    except (OSError, ValueError):
        return otherwise
