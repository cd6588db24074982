"""Constant folding: calls whose inputs are all constants run at compile time, once for all consumers.

    p0 = pack(w); y0 = product(x0, p0); p1 = pack(w); y1 = product(x1, p1)
    ->   p0: weight; y0 = product(x0, p0); y1 = product(x1, p0)

An unrolled recurrent network multiplies by one weight at every step, and exporters write one tensor under many names:
equal constants, equal views of them and equal calls on them are one.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from graphopt.lowering.target import Lowered
from graphopt.program.program import KernelCall, Place, Value
from graphopt.targets.common import host_arrays


class Loader(Protocol):
    """Runs kernels while compiling."""

    def load(self, functions: Mapping[str, Any]) -> Mapping[str, Callable[..., Any]]:
        """Kernels by symbol, callable with arrays on the host."""


def evaluate_constants(lowered: Lowered, builder: Loader) -> None:
    """Run every call whose inputs are all constant (packing, for example), and keep its result as a weight."""
    same = _Same(lowered)
    constant = {name for name in lowered.values if _base(name, lowered.values) in lowered.constants}
    early, late = [], []
    for call in lowered.calls:
        call = replace(call, inputs=tuple(map(same.name, call.inputs)))
        placed = any(lowered.values[name].place is Place.VIEW for name in call.outputs)  # in a run-time tensor
        if call.inputs and not placed and constant.issuperset(call.inputs):
            constant.update(call.outputs)
            constant |= {v.name for v in lowered.values.values() if v.place is Place.VIEW and v.of in call.outputs}
            if same.is_new(call):
                early.append(call)
        else:
            late.append(call)
    lowered.calls = late
    functions, used = lowered.functions, {call.symbol for call in late}
    lowered.functions = {symbol: function for symbol, function in functions.items() if symbol in used}
    if early:
        _run(lowered, early, functions, builder)
    same.keep_outputs()
    _prune(lowered)


class _Same:
    """Maps names of constants with the same bytes and the same shape to one representative."""

    def __init__(self, lowered: Lowered) -> None:
        self._values, self._outputs = lowered.values, lowered.outputs
        self._first: dict[str, str] = {}
        self._views: dict[Hashable, str] = {}
        self._calls: dict[Hashable, tuple[str, ...]] = {}
        for names in equal_arrays(lowered.constants):
            self._first |= dict.fromkeys(names[1:], names[0])

    def name(self, name: str) -> str:
        """The representative of `name`."""
        value = self._values[name]
        if name not in self._first and value.place is Place.VIEW and value.of in self._first:
            value = self._values[name] = replace(value, of=self._first[value.of])
        if name not in self._first and value.place is Place.VIEW:
            key = (value.of, value.offset, value.shape, value.dtype)
            if (first := self._views.setdefault(key, name)) != name:
                self._first[name] = first
        return self._first.get(name, name)

    def is_new(self, call: KernelCall) -> bool:
        """Whether no earlier call computes the same; otherwise the results of that call represent those of `call`."""
        first = self._calls.setdefault((call.symbol, call.inputs), call.outputs)
        self._first |= {name: other for name, other in zip(call.outputs, first, strict=True) if name != other}
        return first == call.outputs

    def keep_outputs(self) -> None:
        """Make every output of the segment that has a representative a view of it."""
        for name in self._outputs:
            if (other := self.name(name)) == name:
                continue
            value, first = self._values[name], self._values[other]
            of, offset = (first.of, first.offset) if first.place is Place.VIEW else (first.name, 0)
            self._values[name] = Value(name, value.dtype, value.shape, Place.VIEW, offset, of)


def equal_arrays(arrays: Mapping[str, NDArray[Any]]) -> Iterable[list[str]]:
    """Groups of two or more names whose arrays have equal dtype, shape and bytes. Reads only arrays of equal size."""
    alike: dict[Hashable, list[str]] = defaultdict(list)
    for name, array in arrays.items():
        alike[array.dtype.name, array.shape].append(name)
    for names in alike.values():
        if len(names) > 1:
            groups: dict[bytes, list[str]] = defaultdict(list)
            for name in names:
                groups[_digest(arrays[name])].append(name)
            yield from (group for group in groups.values() if len(group) > 1)


def _digest(array: NDArray[Any]) -> bytes:
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return hashlib.sha256(data.data if data.size else b"").digest()


def _base(name: str, values: Mapping[str, Value]) -> str:
    value = values[name]
    return value.of if value.place is Place.VIEW else name


def _run(lowered: Lowered, early: list[KernelCall], functions: dict[str, Any], builder: Loader) -> None:
    kernels = builder.load({call.symbol: functions[call.symbol] for call in early})
    for call in early:
        arguments = [_tensor(lowered, name) for name in call.inputs]
        results = []
        for name in call.outputs:
            value = lowered.values[name]
            results.append(host_arrays.empty(value.shape or (), value.dtype))
        kernels[call.symbol](*map(host_arrays.tensor, [*arguments, *results]))
        for name, array in zip(call.outputs, results, strict=True):
            value = lowered.values[name]
            lowered.values[name] = Value(name, str(array.dtype), tuple(array.shape), Place.WEIGHT)
            lowered.constants[name] = array


def _tensor(lowered: Lowered, name: str) -> NDArray[Any]:
    value = lowered.values[name]
    array = lowered.constants[value.of if value.place is Place.VIEW else name]
    return np.ascontiguousarray(array).reshape(value.shape or ())


def _prune(lowered: Lowered) -> None:
    """Remove values that no call uses and that are neither inputs nor outputs."""
    live = {name for call in lowered.calls for name in (*call.inputs, *call.outputs)}
    live.update(lowered.inputs, lowered.outputs)
    live |= {lowered.values[name].of for name in live if lowered.values[name].place is Place.VIEW}
    lowered.values = {name: value for name, value in lowered.values.items() if name in live}
    lowered.constants = {name: array for name, array in lowered.constants.items() if name in live}
