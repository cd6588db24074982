"""Scheduled PrimFuncs -> machine code: in memory for the compiler's own use, or a shared library for an artifact."""

from __future__ import annotations

import importlib.util
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm
from tvm import tirx

from graphopt.errors import GraphoptError
from graphopt.runtime.devices import host
from graphopt.runtime.devices import library as library_runtime
from graphopt.targets.common.identity import Identity
from graphopt.targets.cpu import register_arrays, rules
from graphopt.targets.cpu.machine import CpuMachine
from graphopt.targets.cpu.object_cache import Built, ObjectCache


def compile_functions(functions: Mapping[str, tirx.PrimFunc], machine: CpuMachine) -> tvm.runtime.Executable:
    """Generate code for PrimFuncs by symbol, in one module; the result is callable by `module[symbol]`."""
    library_runtime.runtime()  # settles how TVM's thread pool starts, before the first kernel starts it
    module = tvm.IRModule({tvm.ir.GlobalVar(symbol): function for symbol, function in functions.items()})
    register_arrays.register()
    return tvm.compile(module, tvm.target.Target(machine.llvm_target), tir_pipeline=register_arrays.PIPELINE)


def generate(symbol: str, function: tirx.PrimFunc, machine: CpuMachine) -> bytes:
    """An object file that defines `symbol`; the same bytes for the same function."""
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        path = Path(folder) / "kernel.o"
        compile_functions({symbol: function}, machine).mod.write_to_file(str(path), "o")
        return path.read_bytes()


class Builder:
    """Schedules and compiles kernels for one machine, each once, and none that the cache holds.

    Used from one thread. Code is generated in others, by TVM and LLVM outside Python's lock.
    """

    def __init__(self, machine: CpuMachine, cache: ObjectCache | None = None, ahead: bool = False) -> None:
        """Set up the builder; nothing is compiled yet.

        Args:
            ahead: begin to compile as soon as a kernel is scheduled, because all of them will be needed.
        """
        self._machine, self._cache, self._ahead = machine, cache, ahead
        self._kernels: dict[str, _Kernel] = {}
        self._loaded: dict[str, Callable[..., Any]] = {}
        self._threads = host.available_cpus()
        self._pool = ThreadPoolExecutor(self._threads)
        self._waiting: dict[str, _Kernel] = {}
        self._running: list[Future[bytes]] = []

    def code(self, identity: Identity) -> tuple[tirx.PrimFunc | Built, str]:
        """The code of a kernel, as `library` takes it, and the note of its schedule.

        The code is a PrimFunc with its schedule applied or, from the cache, an object file.
        """
        known = self._kernels.get(identity.symbol)
        if known is None:
            known = self._kernels[identity.symbol] = self._new(identity)
        if known.identity.text != identity.text:
            raise GraphoptError(f"two kernels are called {identity.symbol}; report this model as a bug of graphopt")
        return known.code, known.note

    def identity(self, symbol: str) -> Identity:
        """The identity of a kernel that was passed to `code`."""
        return self._kernels[symbol].identity

    def _new(self, identity: Identity) -> _Kernel:
        if self._cache is not None and (built := self._cache.get(*identity.parts)) is not None:
            return _Kernel(identity, built, built.note)
        scheduled, note = rules.apply(identity.function(), self._machine)
        kernel = _Kernel(identity, scheduled.with_attr("global_symbol", identity.symbol), note)
        if self._ahead:
            self._waiting[identity.symbol] = kernel
            self._begin()
        return kernel

    def _begin(self) -> None:
        """Keep the threads busy with a short queue, so that a process that gives up ends soon."""
        self._running = [future for future in self._running if not future.done()]
        while self._waiting and len(self._running) < 2 * self._threads:
            self._running.append(self._submit(next(iter(self._waiting.values()))))

    def _submit(self, kernel: _Kernel) -> Future[bytes]:
        if kernel.object is None or kernel.object.cancelled():  # cancelled with all others when the code of one failed
            self._waiting.pop(kernel.identity.symbol, None)
            kernel.object = self._pool.submit(self._compile, kernel)
        return kernel.object

    def _compile(self, kernel: _Kernel) -> bytes:
        code = generate(kernel.identity.symbol, kernel.code, self._machine)
        if self._cache is not None:
            self._cache.put(Built(code, kernel.note), *kernel.identity.parts)
        return code

    def library(self, functions: Mapping[str, tirx.PrimFunc | Built]) -> bytes:
        """A shared library with one entry per symbol; the same bytes for the same functions."""
        with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
            return self._link(functions, Path(folder)).read_bytes()

    def load(self, functions: Mapping[str, tirx.PrimFunc | Built]) -> Mapping[str, Callable[..., Any]]:
        """The functions, callable in this process."""
        fresh = {symbol: function for symbol, function in functions.items() if symbol not in self._loaded}
        if fresh:
            with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
                find = library_runtime.load(self._link(fresh, Path(folder)))
            self._loaded |= {symbol: find(symbol) for symbol in fresh}
        return {symbol: self._loaded[symbol] for symbol in functions}

    def objects(self, functions: Mapping[str, tirx.PrimFunc | Built]) -> list[bytes]:
        """Object files in the order of their symbols."""
        begun = [self._object(symbol, function) for symbol, function in functions.items()]
        try:
            objects = [item if isinstance(item, bytes) else item.result() for item in begun]
        except BaseException:
            for item in begun:
                if not isinstance(item, bytes):
                    item.cancel()
            raise
        if self._cache is not None:
            self._cache.trim()
        return objects

    def _object(self, symbol: str, function: tirx.PrimFunc | Built) -> bytes | Future[bytes]:
        if isinstance(function, Built):
            return function.object
        kernel = self._kernels.get(symbol)
        if kernel is None or kernel.code is not function:  # not of `code`: nothing is known about it
            return self._pool.submit(generate, symbol, function, self._machine)
        return self._submit(kernel)

    def _link(self, functions: Mapping[str, tirx.PrimFunc | Built], folder: Path) -> Path:
        paths = []
        for number, code in enumerate(self.objects(functions)):
            path = folder / f"{number}.o"
            path.write_bytes(code)
            paths.append(str(path))
        output = folder / "kernels.so"
        _link(str(output), paths)
        return output


@dataclass(slots=True)
class _Kernel:
    identity: Identity
    code: tirx.PrimFunc | Built
    note: str
    object: Future[bytes] | None = None


def _link(output: str, objects: Sequence[str]) -> None:
    """Link with the LLD that pip installs (in the `ziglang` package), so that no system compiler is needed."""
    spec = importlib.util.find_spec("ziglang")
    if spec is None or not spec.submodule_search_locations:
        raise GraphoptError("the package ziglang is not installed: install graphopt again with its dependencies")
    zig = str(Path(spec.submodule_search_locations[0]) / "zig")  # without a second Python in between
    command = [zig, "ld.lld", "-shared", "-z", "noexecstack", "-o", output, *objects]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise GraphoptError(f"linking {Path(output).name} failed: {done.stderr.strip().splitlines()[-1]}")
