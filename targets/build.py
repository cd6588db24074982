"""Scheduled PrimFuncs -> machine code: in memory for the compiler's own use, or a shared library for an artifact."""

from __future__ import annotations

import importlib.util
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray

from graphopt.errors import GraphoptError
from graphopt.program import ALIGNMENT
from graphopt.runtime import cpu
from graphopt.runtime import library as library_runtime
from graphopt.targets.machine import CpuMachine


def compile_functions(functions: Mapping[str, Any], machine: CpuMachine) -> Any:
    """Generate code for PrimFuncs by symbol; the result is callable by `module[symbol]`."""
    library_runtime.runtime()  # settles how TVM's thread pool starts, before the first kernel starts it
    module = tvm.IRModule({tvm.ir.GlobalVar(symbol): function for symbol, function in functions.items()})
    return tvm.compile(module, tvm.target.Target(machine.llvm_target))


def library(functions: Mapping[str, Any], machine: CpuMachine) -> bytes:
    """A shared library with one entry per symbol; the same bytes for the same functions, whatever the core count.

    Every function becomes an object file of its own, in parallel (TVM and LLVM run outside Python's lock).
    """
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:

        def compile_one(numbered: tuple[int, str]) -> str:
            number, symbol = numbered
            path = str(Path(folder) / f"{number}.o")
            compile_functions({symbol: functions[symbol]}, machine).mod.write_to_file(path, "o")
            return path

        with ThreadPoolExecutor(cpu.available_cpus()) as pool:
            objects = list(pool.map(compile_one, enumerate(functions)))
        path = Path(folder) / "kernels.so"
        _link(str(path), objects)
        return path.read_bytes()


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


def empty(shape: Sequence[int], dtype: str) -> NDArray[Any]:
    """An uninitialised array that starts at a multiple of ALIGNMENT, as kernels expect."""
    kind = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    raw = np.empty(size + ALIGNMENT, dtype=np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(kind).reshape(tuple(shape))


def tensor(array: NDArray[Any]) -> Any:
    """A TVM view of `array`; a copy only where it is not aligned."""
    if array.ctypes.data % ALIGNMENT:
        aligned = empty(array.shape, str(array.dtype))
        aligned[...] = array
        array = aligned
    return tvm.runtime.from_dlpack(array) if array.flags.writeable else tvm.runtime.tensor(array)
