"""The GPU targets: kernels for CUDA, compiled for one architecture, or for OpenCL, compiled by the device's driver."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import disk_cache
from graphopt.cost.roofline import Machine
from graphopt.cost.workload import Timing, Workload
from graphopt.errors import GraphoptError
from graphopt.graph.opsets import OPSET
from graphopt.lowering.target import Lowered
from graphopt.ops import DOMAIN, VERSION
from graphopt.program import weights
from graphopt.program.program import Place, Value
from graphopt.runtime.devices import host as host_cpu
from graphopt.runtime.devices import library
from graphopt.runtime.devices.device import Device
from graphopt.runtime.devices.opening import open_any
from graphopt.targets.common import constants, lowering, native, relax_import, sources
from graphopt.targets.common.codegen import codegen
from graphopt.targets.common.identity import Identity
from graphopt.targets.common.quiet import quiet
from graphopt.targets.common.tvm_target import TvmTarget
from graphopt.targets.cpu import build, machine
from graphopt.targets.cpu.object_cache import ObjectCache
from graphopt.targets.gpu import code, devices, measure, nvrtc, rules, tiles
from graphopt.targets.gpu.code_cache import CodeCache
from graphopt.targets.gpu.converters.blocked import BLOCK
from graphopt.targets.gpu.converters.table import TABLE
from graphopt.targets.gpu.estimates import Estimates
from graphopt.targets.gpu.source_cache import Generated, SourceCache

SPARSE_SIDES = (32, 64)
"""Inputs and outputs of blocks of sparse weights: a slice of k is as deep, and no tile of a block is narrower."""


class GpuTarget(TvmTarget):
    """Generates code for one device, or for the architecture that it stands for."""

    extension = "kernels"

    def __init__(self, name: str, device: devices.GpuSpec, cache: bool = False) -> None:
        """A target that needs no device.

        Args:
            name: of the target, "cuda" or "opencl".
            cache: keep compiled kernels in the user's cache, and take them from there.
        """
        super().__init__(device, TABLE)
        self.name, self.device = name, device
        host, kept = machine.detect(), cache and sources.unchanged()
        self._host = build.Builder(host, ObjectCache(disk_cache.objects(), host) if kept else None)
        self._sources = SourceCache(disk_cache.objects(), device) if kept else None
        self._cache = CodeCache(disk_cache.objects(), device.arch) if cache and device.cuda else None
        self._estimates = Estimates(device)
        self._tiles: dict[str, tuple[str, ...]] = {}
        self._facts: Mapping[str, Any] | str | None = None
        self._kernels: dict[str, Generated] = {}

    @property
    def skips(self) -> bool:
        """False, because a run is one graph, recorded once."""
        return False

    @property
    def machine(self) -> Machine:
        """What partitioning and estimates see of the device."""
        floats = ("float32", "float64", "float16", "bfloat16") if self.device.cuda else ("float32", "float64")
        return Machine(
            BLOCK,
            self.device.multiprocessors,
            self.device.rates["float32"],
            self.device.bandwidth,
            floats,
            tuple((side, side) for side in SPARSE_SIDES),
            SPARSE_SIDES,
            packs=False,
        )

    def estimate(self, workload: Workload, units: str) -> float | None:
        """Estimated seconds of convolutions and of changes between layouts; None where they are not known."""
        return self._estimates.seconds(workload, units)

    def describe(self) -> dict[str, Any]:
        """The manifest's `target`."""
        if not self.device.cuda:
            return {"name": self.name}
        return {"name": self.name, "gpu": self.device.arch, "device": self.device.name}

    def lacking(self, node: ir.Node) -> str | None:
        """Why the device cannot hold what `node` reads or writes; None if it can."""
        if self.device.cuda:
            return None
        kinds = {str(value.dtype) for value in (*node.inputs, *node.outputs) if value is not None}
        half = next((kind.lower() for kind in ("FLOAT16", "BFLOAT16") if kind in kinds), None)
        return None if half is None else f"OpenCL devices need not know {half}"

    def lower(
        self,
        nodes: Sequence[ir.Node],
        inputs: Sequence[ir.Value],
        outputs: Sequence[ir.Value],
        opsets: Mapping[str, int],
        prefix: str,
    ) -> Lowered:
        """Import, fuse, run on the host what depends on constants only, and generate code for the rest."""
        with codegen():
            with quiet():
                imported = relax_import.import_nodes(
                    nodes, inputs, outputs, opsets, self.device, TABLE, self.definitions
                )
                lowered = lowering.lower(imported, _Unscheduled(), prefix, self.separate)
            constants.evaluate_constants(lowered, _OnHost(self._host))
            self._generate(lowered)
        self._launch(lowered, prefix)
        return lowered

    def copy(self, source: Value, result: Value, prefix: str) -> Lowered:
        """One call that copies a value into another of its type and shape."""
        with codegen():
            lowered = lowering.lower_copy(source, result, _Unscheduled())
            self._generate(lowered)
        self._launch(lowered, prefix)
        return lowered

    def _generate(self, lowered: Lowered) -> None:
        for symbol, identity in lowered.functions.items():
            kernel = self._kernel(identity)
            lowered.functions[symbol], lowered.plans[symbol] = kernel.code, kernel.plan
            if kernel.note:
                lowered.notes.append(f"kernel {symbol}: {kernel.note}")

    def _kernel(self, identity: Identity) -> Generated:
        if identity.symbol not in self._kernels:
            cached = None if self._sources is None else self._sources.get(*identity.parts)
            self._kernels[identity.symbol] = cached or self._generated(identity)
        return self._kernels[identity.symbol]

    def _generated(self, identity: Identity) -> Generated:
        scheduled = rules.apply(identity.function(), self.device)
        device_code = code.generate(identity.symbol, scheduled.function, self.device)
        generated = Generated(device_code, scheduled.plan, scheduled.note)
        if self._sources is not None:
            self._sources.put(generated, *identity.parts)
        return generated

    def _launch(self, lowered: Lowered, prefix: str) -> None:
        """Give every call its launches, and values of its own for what passes between them."""
        calls = []
        for number, call in enumerate(lowered.calls):
            device_code: code.DeviceCode = lowered.functions[call.symbol]
            scratch = tuple(f"{prefix}scratch{number}_{i}" for i in range(len(device_code.scratch)))
            for name, (dtype, shape) in zip(scratch, device_code.scratch, strict=True):
                lowered.values[name] = Value(name, dtype, shape, Place.ARENA)
            calls.append(replace(call, scratch=scratch, launches=device_code.launches))
        lowered.calls = calls

    def library(self, functions: Mapping[str, code.DeviceCode]) -> bytes:
        """The kernels by symbol, as a safetensors file of bytes: machine code for CUDA, source for OpenCL."""
        images = self.images(functions)
        return weights.weights_bytes({symbol: np.frombuffer(image, np.uint8) for symbol, image in images.items()})

    def images(self, functions: Mapping[str, code.DeviceCode]) -> dict[str, bytes]:
        """The image that a device loads, for each function."""
        with ThreadPoolExecutor(host_cpu.available_cpus()) as pool:
            images = dict(zip(functions, pool.map(self.image, functions.values()), strict=True))
        for cache in (self._sources, self._cache):
            if cache is not None:
                cache.trim()
        return images

    def image(self, device_code: code.DeviceCode) -> bytes:
        """The image that a device loads: machine code for CUDA, source for OpenCL."""
        return self.compiled(device_code).image if self.device.cuda else device_code.source.encode()

    def compiled(self, device_code: code.DeviceCode) -> nvrtc.Compiled:
        """Machine code for as many resident blocks as the kernels can have without spilling registers."""
        for resident in range(device_code.resident, 0, -1):
            machine_code = self._machine_code(device_code.bounded(resident))
            if not any(resources.spilled for resources in machine_code.resources.values()):
                break
        return machine_code

    def _machine_code(self, source: str) -> nvrtc.Compiled:
        if self._cache is None:
            return nvrtc.compile_cuda(source, self.device.arch)
        return self._cache.compile(source)

    def tiles(self, workload: Workload) -> tuple[str, ...]:
        """The tiles of a workload that are worth measuring: first the empty one, which leaves it to the schedule."""
        if workload.key not in self._tiles:
            self._tiles[workload.key] = tiles.tiles(workload, self.device, self._unscheduled)
        return self._tiles[workload.key]

    def wide_tiles(self, workload: Workload) -> tuple[str, ...]:
        """All tiles of a workload; none where there is nothing to choose."""
        return tiles.wide(workload, self.device, self._unscheduled)

    def _unscheduled(self, node: ir.Node) -> Mapping[str, Identity]:
        """The kernels of a node, also those that only constants depend on."""
        opsets = {"": OPSET, DOMAIN: VERSION}
        imported = relax_import.import_nodes([node], *native.ends(node), opsets, self.device, TABLE, self.definitions)
        return lowering.lower(imported, _Unscheduled(), "tiles_").functions

    def measure(
        self, groups: Sequence[Sequence[tuple[Workload, str]]], progress: Callable[[str], None] | None = None
    ) -> list[list[Timing | None]]:
        """Time on the device that is here, opened for this alone.

        Raises:
            GraphoptError: there is none, it has not enough memory, or it fails.
        """
        return measure.measure(groups, self, self._open(), progress)

    def cannot_measure(self) -> str | None:
        """Why nothing can be timed here: no device, or one of another architecture than the code's; else None."""
        facts = self._present()
        if isinstance(facts, str):
            return facts
        if not self.device.cuda or self.device.arch.rstrip("a") == facts["arch"]:
            return None
        level = devices.level_of(str(facts["name"]), str(facts["arch"]))
        return f"{facts['name']} is no {self.device.arch}; compile for it with --level {level} to measure"

    def cost_facts(self) -> dict[str, str]:
        """What measured costs depend on: device and driver, architecture, compiler and TVM, the kernels' sources."""
        present = self._present()
        facts = {} if isinstance(present, str) else present
        return {
            "gpu": str(facts.get("name", "")),
            "driver": f"{facts.get('driver')}, CUDA {facts.get('cuda')}",
            "level": f"{self.device.name} {self.device.arch}",
            "compiler": nvrtc.version() if self.device.cuda else "",
            "tvm": library.version(),
            "kernels": sources.digest(),
        }

    def _open(self) -> Device:
        """The device that is here.

        Raises:
            GraphoptError: there is none.
        """
        return open_any(self.name, self.device.arch)

    def _present(self) -> Mapping[str, Any] | str:
        """The facts of the device that is here, or why there is none; queried once."""
        if self._facts is None:
            try:
                self._facts = open_any(self.name).facts()
            except GraphoptError as error:
                self._facts = str(error).partition(";")[0]
        return self._facts


class CudaTarget(GpuTarget):
    """NVIDIA GPUs."""

    def __init__(
        self, level: str | None = None, threads: int | None = None, cache: bool = False, ahead: bool = False
    ) -> None:
        """Args: level: a name in `devices.DEVICES` or an architecture such as "sm_80".

        Raises:
            GraphoptError: there is no such device.
        """
        super().__init__("cuda", devices.find(level), cache)


class OpenClTarget(GpuTarget):
    """Devices of any make."""

    def __init__(
        self, level: str | None = None, threads: int | None = None, cache: bool = False, ahead: bool = False
    ) -> None:
        """Args: level: must be None, because the driver compiles.

        Raises:
            GraphoptError: it is not.
        """
        if level is not None:
            raise GraphoptError(f"--level {level} does not go with --target opencl, whose driver compiles for itself")
        super().__init__("opencl", devices.OPENCL, cache)


class _Unscheduled:
    """What `lowering.lower` asks of a builder: leaves every kernel as it is."""

    def code(self, identity: Identity) -> tuple[Identity, str]:
        return identity, ""


class _OnHost:
    """What `constants.evaluate_constants` asks of a builder: kernels that run while compiling, on the CPU."""

    def __init__(self, builder: build.Builder) -> None:
        self._builder = builder

    def load(self, functions: Mapping[str, Identity]) -> Mapping[str, Callable[..., Any]]:
        return self._builder.load({symbol: self._builder.code(identity)[0] for symbol, identity in functions.items()})
