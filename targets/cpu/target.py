"""The CPU target: x86-64 code from TVM's LLVM back end, with our schedules."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir
from tvm import tirx

from graphopt import disk_cache
from graphopt.cost.roofline import Machine
from graphopt.cost.workload import Timing, Workload
from graphopt.lowering.target import Lowered
from graphopt.program.program import Value
from graphopt.runtime.devices import host as host_cpu
from graphopt.runtime.devices import library
from graphopt.targets.common import constants, lowering, relax_import, sources
from graphopt.targets.common.codegen import codegen
from graphopt.targets.common.quiet import quiet
from graphopt.targets.common.tvm_target import TvmTarget
from graphopt.targets.cpu import build, measure, tiles
from graphopt.targets.cpu.converters.table import TABLE
from graphopt.targets.cpu.machine import detect
from graphopt.targets.cpu.object_cache import Built, ObjectCache


class CpuTarget(TvmTarget):
    """Code for this host, or for a named level ("avx512", "avx2", "x86-64") that other hosts share."""

    extension = "so"

    def __init__(
        self, level: str | None = None, threads: int | None = None, cache: bool = False, ahead: bool = False
    ) -> None:
        """A target for this host.

        Args:
            cache: keep compiled kernels in the user's cache, and take them from there.
            ahead: compile in the background from the first `lower` on; `library` then waits for what is missing.
        """
        self.cpu = detect(level, threads)
        super().__init__(self.cpu, TABLE)
        kept = ObjectCache(disk_cache.objects(), self.cpu) if cache and sources.unchanged() else None
        self._builder = build.Builder(self.cpu, kept, ahead)
        self._host = self._builder if self.cannot_measure() is None else _OnHost(self._builder)

    @property
    def skips(self) -> bool:
        """True: the host issues every call, so it can skip any."""
        return True

    @property
    def machine(self) -> Machine:
        """Vector lanes and cores of the host; peak and bandwidth are the roofline's own, since estimates only rank."""
        lanes = self.cpu.lanes()
        return Machine(vector_lanes=lanes, cores=self.cpu.cores)

    def estimate(self, workload: Workload, units: str) -> float | None:
        """None: the rates of the roofline model describe CPUs already."""
        return None

    def describe(self) -> dict[str, Any]:
        """The manifest's `target`."""
        level = self.cpu.level
        return {"name": "llvm", "arch": platform.machine(), "level": level.name, "features": list(level.features)}

    def lower(
        self,
        nodes: Sequence[ir.Node],
        inputs: Sequence[ir.Value],
        outputs: Sequence[ir.Value],
        opsets: Mapping[str, int],
        prefix: str,
    ) -> Lowered:
        """Import, fuse and schedule the nodes, then evaluate the calls that depend on constants only."""
        with codegen():
            with quiet():
                imported = relax_import.import_nodes(nodes, inputs, outputs, opsets, self.cpu, TABLE, self.definitions)
                lowered = lowering.lower(imported, self._builder, prefix, self.separate)
            constants.evaluate_constants(lowered, self._host)
        return lowered

    def copy(self, source: Value, result: Value, prefix: str) -> Lowered:
        """One call that copies a value into another of its type and shape."""
        del prefix
        return lowering.lower_copy(source, result, self._builder)

    def library(self, functions: Mapping[str, tirx.PrimFunc | Built]) -> bytes:
        """Compile and link all functions into one shared library."""
        with codegen():
            return self._builder.library(functions)

    def tiles(self, workload: Workload) -> tuple[str, ...]:
        """The tiles worth measuring for `workload`, the default first."""
        return tiles.tiles(workload, self.cpu)

    def wide_tiles(self, workload: Workload) -> tuple[str, ...]:
        """All tiles that the kernel of `workload` can be built with; none where there is nothing to choose."""
        return tiles.wide(workload, self.cpu)

    def measure(
        self, groups: Sequence[Sequence[tuple[Workload, str]]], progress: Callable[[str], None] | None = None
    ) -> list[list[Timing | None]]:
        """Time every (workload, tile) on as many threads as the code is generated for."""
        return measure.measure(groups, self, self.cpu.cores, progress)

    def cannot_measure(self) -> str | None:
        """Why the code cannot run here, in a sentence: the processor lacks features of its level. None if it can."""
        if host_cpu.features().issuperset(self.cpu.level.features):
            return None
        return f"this processor lacks features of {self.cpu.level.name}"

    def cost_facts(self) -> dict[str, str]:
        """What measured times depend on: processor, threads, code generator, and the sources of the kernels."""
        return {
            "processor": host_cpu.model_name(),
            "threads": str(self.cpu.cores),
            "level": self.cpu.level.name,
            "tvm": library.version(),
            "kernels": sources.digest(),
        }


class _OnHost:
    """Builds kernels for constant folding for this processor where it cannot run the code of the target's level."""

    def __init__(self, builder: build.Builder) -> None:
        self._builder = builder
        self._own = build.Builder(detect())

    def load(self, functions: Mapping[str, tirx.PrimFunc | Built]) -> Mapping[str, Callable[..., Any]]:
        identities = {symbol: self._builder.identity(symbol) for symbol in functions}
        return self._own.load({symbol: self._own.code(identity)[0] for symbol, identity in identities.items()})
