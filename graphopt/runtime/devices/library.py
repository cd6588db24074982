"""TVM's runtime without TVM's compiler: shared objects with kernels, tensor views on our memory, and the thread count.

`import tvm` takes seconds, because it imports the compiler and torch. A compiled kernel needs only tvm_ffi and two
libraries of the tvm package, which are loaded here by name: some 0.1 s, without torch and without the compiler.
tvm_ffi imports torch and cuda-bindings wherever they are installed: both are hidden from it.

Threads: TVM keeps one pool per calling thread, sized when that thread first uses it. The pool gets as many threads as
the processors this process may use (TVM_NUM_THREADS, unless the user set it), and each session uses its own number of
them. Threads are not pinned to cores (TVM_BIND_THREADS=0, unless the user set it): TVM would pin every process to the
same first cores, so that several ranks, or two programs side by side, would compete for them. `placement` decides which
core a thread wakes on after a pause.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from graphopt.errors import ArtifactError, GraphoptError
from graphopt.runtime.devices import forked, host, placement

_LIBRARIES = ("libtvm_runtime.so", "libtvm_runtime_extra.so")
_HIDDEN = ("torch", "cuda.bindings")
"""Packages that tvm_ffi imports if it can, for conversions that nothing here uses: 2 s and 0.1 s."""
ADDRESS = 16
"""Alignment of argument addresses in bytes, as the compiler tells LLVM (`targets/cpu/register_arrays.py`)."""

_DEFAULT_MODE = 1  # ThreadGroup::kBig: all cores of the same kind


@functools.cache
def runtime() -> ModuleType:
    """The tvm_ffi module, with TVM's runtime libraries loaded.

    Raises:
        GraphoptError: the apache-tvm package is not installed.
    """
    os.environ.setdefault("TVM_NUM_THREADS", str(host.available_cpus()))
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    # Idle workers poll this often, about a microsecond each, before they sleep: long enough for the gaps inside a run.
    # TVM's default keeps cores from ONNX Runtime's segments and from other ranks for a third of a second.
    os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", "5000")
    _import_alone("tvm_ffi")
    if "tvm" not in sys.modules:
        for name in _LIBRARIES:
            ctypes.CDLL(str(_library_folder() / name), mode=ctypes.RTLD_GLOBAL)
    ffi = sys.modules["tvm_ffi"]
    forked.watch()
    placement.started_by(ffi.get_global_func("runtime.NumThreads"))
    return ffi


def version() -> str:
    """The version of the installed apache-tvm package: kernels run on the runtime of the version that compiled them."""
    return importlib.metadata.version("apache-tvm")


def load(file: Path) -> Callable[[str], Callable[..., Any]]:
    """Load the shared object `file`; the result maps a symbol to its function, raising ArtifactError if there is none.

    Raises:
        ArtifactError: the file cannot be loaded.
    """
    try:
        module = runtime().load_module(str(file))
    except (RuntimeError, ValueError, OSError) as error:
        raise ArtifactError(f"{file.name} cannot be loaded: {str(error).strip().splitlines()[-1]}") from error

    def function(symbol: str) -> Callable[..., Any]:
        if not module.implements_function(symbol):
            raise ArtifactError(f"{file.name} has no function {symbol!r}: the artifact is damaged, compile it again")
        compiled: Callable[..., Any] = module.get_function(symbol)
        return compiled

    return function


def tensor(data: npt.NDArray[np.uint8], dtype: str, shape: tuple[int, ...]) -> Any:
    """A tensor argument for kernels: the bytes `data` (one axis, writable, aligned) as `dtype` of `shape`."""
    # The view is created at byte offset 0 of an array of its own: kernels refuse tensors with an offset.
    ffi = runtime()
    view = ffi.get_global_func("runtime.TVMTensorCreateView")
    return view(ffi.from_dlpack(data, require_alignment=ADDRESS), ffi.Shape(shape), ffi.dtype(dtype), 0)


def shared(array: npt.NDArray[Any]) -> Any:
    """A tensor argument for kernels on the memory of `array`, which is contiguous.

    Raises:
        BufferError, RuntimeError, ValueError: its memory is read-only, or not aligned.
    """
    return runtime().from_dlpack(array, require_alignment=ADDRESS)


class Threads:
    """The number of threads of parallel kernels called from the current thread."""

    def __init__(self, count: int) -> None:
        """Args: count: number of threads, at least 1.

        Raises:
            GraphoptError: count is less than 1, or more than TVM's pool has.
        """
        ffi = runtime()
        self._count = count
        self._current = ffi.get_global_func("runtime.NumThreads")
        self._configure = ffi.get_global_func("runtime.config_threadpool")
        self._placement = placement.Placement(count)
        self.apply()

    def apply(self) -> None:
        """Set the number for the current thread; takes a fraction of a microsecond if it is set already."""
        if self._current() == self._count:
            return
        self._configure(_DEFAULT_MODE, self._count)
        if self._current() != self._count:
            raise GraphoptError(
                f"{self._count} threads are not available: TVM's pool has {self._current()}; ask for at most as many, "
                "or set the environment variable TVM_NUM_THREADS before the first session"
            )

    def begin(self) -> None:
        """Prepare a run on the current thread: `apply`, and let sleeping workers wake on other cores."""
        placement.started_by(self.apply)
        self._placement.begin()

    def end(self) -> None:
        """Undo `begin` after the run."""
        self._placement.end()


def compiler() -> None:
    """Import TVM's compiler without `_HIDDEN`: some 0.7 s instead of 2."""
    runtime()
    _import_alone("tvm")


def _import_alone(name: str) -> None:
    """Import a package without `_HIDDEN`, which it would import if it could; what is loaded already stays visible."""
    if name in sys.modules:
        return
    hidden = [package for package in _HIDDEN if package not in sys.modules]
    for package in hidden:
        sys.modules[package] = None  # type: ignore[assignment]
    try:
        importlib.import_module(name)
    finally:
        for package in hidden:
            del sys.modules[package]


def _library_folder() -> Path:
    spec = importlib.util.find_spec("tvm")
    if spec is None or not spec.submodule_search_locations:
        raise GraphoptError("the package apache-tvm is not installed: install graphopt again with its dependencies")
    return Path(spec.submodule_search_locations[0]) / "lib"
