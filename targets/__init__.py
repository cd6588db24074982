"""The targets. `TARGETS` maps the name on the command line to a module and class, which load when first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from graphopt.errors import GraphoptError

if TYPE_CHECKING:
    from graphopt.lowering.target import Target

TARGETS = {
    "llvm": ("graphopt.targets.cpu.target", "CpuTarget"),
    "cuda": ("graphopt.targets.gpu.target", "CudaTarget"),
    "opencl": ("graphopt.targets.gpu.target", "OpenClTarget"),
}


def load_target(name: str, level: str | None = None, threads: int | None = None, cache: bool = False) -> Target:
    """The target called `name`, for this host or for the named level of its architecture.

    Args:
        name: a key of `TARGETS`.
        level: a level of the architecture; None for the host's.
        threads: threads that kernels will run on; None for all processors that this process may use.
        cache: keep compiled kernels in the user's cache directory, and reuse them.

    Raises:
        GraphoptError: no such target, or no such level.
    """
    if name not in TARGETS:
        raise GraphoptError(f"--target {name} is unknown; choose one of {', '.join(TARGETS)}.")
    module, attribute = TARGETS[name]
    from graphopt.runtime.devices import library
    from graphopt.targets.common import sources as sources  # records the time before the others are imported

    library.compiler()  # before a module of the target imports it in its own, slower way
    target: Target = getattr(importlib.import_module(module), attribute)(level, threads, cache, ahead=True)
    return target
