"""Runs one node of a model by itself: builds its kernels and calls them on a given input."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.lowering.target import Lowered, Target
from graphopt.program.program import Place
from graphopt.runtime.devices import library
from graphopt.targets.common import concat_views, host_arrays

Load = Callable[[str], Callable[..., Any]]
_POISON = 0xFF  # NaN in every float type


def load(target: Target, items: Iterable[Lowered]) -> Load:
    """Build the kernels of all items; the result maps a symbol to its function."""
    functions = {symbol: function for item in items for symbol, function in item.functions.items()}
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        path = Path(folder) / "alone.so"
        path.write_bytes(target.library(functions))
        return library.load(path)


def run(lowered: Lowered, functions: Load, x: NDArray[Any]) -> NDArray[Any]:
    """The first output for the input `x`; elements that no kernel writes are NaN.

    Args:
        functions: the result of `load`.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for value in lowered.values.values():
        if value.place is Place.VIEW:
            continue
        array = host_arrays.empty(value.shape or (), value.dtype)
        if value.name in lowered.constants:
            array[...] = lowered.constants[value.name]
        elif value.name in lowered.inputs:
            array[...] = x
        else:
            array.reshape(-1).view(np.uint8)[:] = _POISON
        arrays[value.name] = array
    for value in lowered.values.values():
        if value.place is Place.VIEW:
            arrays[value.name] = concat_views.shown(arrays[value.of], value)
    for call in lowered.calls:
        operands = [arrays[name] for name in (*call.inputs, *call.outputs, *call.scratch)]
        functions(call.symbol)(*map(host_arrays.tensor, operands))
    return arrays[lowered.outputs[0]]
