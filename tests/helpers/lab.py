"""Runs models as native kernels on poisoned, guarded memory, and holds them against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import tvm_ffi
from numpy.typing import NDArray

from graphopt import ops
from graphopt.lowering.target import Lowered
from graphopt.program.program import Place
from graphopt.runtime.devices import host, library
from graphopt.targets.common import concat_views, host_arrays
from graphopt.targets.cpu import build
from graphopt.targets.cpu.machine import LEVELS
from graphopt.targets.cpu.target import CpuTarget
from graphopt.verify.oracle import Tolerance, run_onnxruntime
from tests.helpers.equal import require_equal

Array = NDArray[Any]

_GUARD = 64
_POISON = 0xFF  # NaN in every float type
_FENCE = 0xA5
_KEPT = 4  # compiled modules


def executable_levels() -> list[str]:
    """The levels whose code this host can run."""
    flags = host.features()
    return [name for name, level in LEVELS.items() if flags.issuperset(level.features)]


def make_model(
    body: str, feeds: Mapping[str, Array], constants: Mapping[str, Array], outputs: Sequence[str], opset: int
) -> ir.Model:
    """A model from the nodes in `body` with the inputs `feeds` and the initializers `constants`.

    Every value gets the type that ONNX Runtime gives it on these feeds.
    """
    wanted = ", ".join(f"float {name}" for name in outputs)
    declared = ", ".join(f"float {name}" for name in (*feeds, *constants))
    model = ir.from_onnx_text(
        f'<ir_version: 11, opset_import: ["": {opset}, "graphopt": 1]>\ng ({declared}) => ({wanted}) {{ {body} }}'
    )
    for number, node in enumerate(model.graph):
        node.name = f"{node.op_type.lower()}{number}"
        if node.domain == ops.DOMAIN:
            ops.ensure(model, node.op_type)
    for value in list(model.graph.inputs):
        name = str(value.name)
        array = feeds[name] if name in feeds else constants[name]
        value.type, value.shape = ir.TensorType(ir.DataType.from_numpy(array.dtype)), ir.Shape(array.shape)
        if name in constants:
            value.const_value = ir.Tensor(array, name=name)
            model.graph.inputs.remove(value)
            model.graph.register_initializer(value)
    kept = list(model.graph.outputs)
    every = list(dict.fromkeys([*kept, *(value for node in model.graph for value in node.outputs if value.name)]))
    for value in every:
        value.type = value.shape = None
    model.graph.outputs[:] = every
    for name, array in run_onnxruntime(model, feeds).items():
        value = next(v for v in every if v.name == name)
        value.type, value.shape = ir.TensorType(ir.DataType.from_numpy(array.dtype)), ir.Shape(array.shape)
    model.graph.outputs[:] = kept
    return model


class _Memory:
    """A poisoned array between two fences."""

    def __init__(self, shape: Sequence[int], dtype: str) -> None:
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        self._whole = host_arrays.empty((size + 2 * _GUARD,), "uint8")
        self._whole[:] = _FENCE
        inner = self._whole[_GUARD : _GUARD + size]
        inner[:] = _POISON
        self.array = inner.view(dtype).reshape(tuple(shape))

    def check(self, name: str) -> None:
        edges = (*self._whole[:_GUARD], *self._whole[len(self._whole) - _GUARD :])
        assert set(edges) == {_FENCE}, f"a kernel wrote outside {name}"


@dataclass(frozen=True)
class Lab:
    """A target at one level, and what the tests do with it."""

    target: CpuTarget
    _modules: dict[tuple[Any, ...], Any] = field(default_factory=dict, compare=False)

    def _compiled(self, functions: Mapping[str, Any]) -> Any:
        """The module of these functions; the last few are kept for tests that run the same ones again."""
        if not functions:
            return {}
        key = tuple((symbol, tvm_ffi.StructuralKey(function)) for symbol, function in functions.items())
        if key not in self._modules:
            if len(self._modules) == _KEPT:
                del self._modules[next(iter(self._modules))]
            self._modules[key] = build.compile_functions(functions, self.target.cpu)
        return self._modules[key]

    def model(
        self,
        body: str,
        feeds: Mapping[str, Array],
        constants: Mapping[str, Array] | None = None,
        outputs: Sequence[str] = ("y",),
        opset: int = 21,
    ) -> ir.Model:
        """See `make_model`."""
        return make_model(body, feeds, constants or {}, outputs, opset)

    def lower(self, model: ir.Model) -> Lowered:
        """All nodes of `model` as one segment; each must be supported."""
        refused = {n.name: r for n in model.graph if (r := self.target.supports(n, model.opset_imports)) is not None}
        assert not refused
        graph = model.graph
        return self.target.lower(list(graph), list(graph.inputs), list(graph.outputs), model.opset_imports, "s_")

    def execute(self, lowered: Lowered, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the calls; every value that a call writes is poisoned before, and fenced."""
        library.Threads(min(2, host.available_cpus())).apply()  # idle workers spin, beside the other tests
        module = self._compiled(lowered.functions)
        memory: dict[str, _Memory] = {}
        arrays: dict[str, Array] = {}
        for name, value in lowered.values.items():
            if value.place is Place.ARENA:
                assert value.shape is not None
                memory[name] = _Memory(value.shape, value.dtype)
                arrays[name] = memory[name].array
                if name in feeds:
                    arrays[name][...] = feeds[name]
        arrays |= {name: host_arrays.empty(array.shape, str(array.dtype)) for name, array in lowered.constants.items()}
        for name, array in lowered.constants.items():
            arrays[name][...] = array
        for name, value in lowered.values.items():
            if value.place is Place.VIEW:
                arrays[name] = concat_views.shown(arrays[value.of], value)
        for call in lowered.calls:
            module[call.symbol](*(host_arrays.tensor(arrays[name]) for name in (*call.inputs, *call.outputs)))
        for name, block in memory.items():
            block.check(name)
        for name, array in feeds.items():
            if name in arrays:
                np.testing.assert_array_equal(arrays[name], array, f"a kernel wrote into the input {name}")
        return {name: arrays[name] for name in lowered.outputs}

    def check(self, model: ir.Model, feeds: Mapping[str, Array], rtol: float = 2e-5) -> Lowered:
        """The kernels of `model` agree with ONNX Runtime, which runs the bodies of custom operators.

        Every schedule must fit. Returns what was run.
        """
        lowered = self.lower(model)
        assert not lowered.notes
        actual = self.execute(lowered, feeds)
        tolerances = {"float32": Tolerance(rtol, 1e-6), "float64": Tolerance(1e-12, 1e-14)}
        require_equal(run_onnxruntime(model, feeds), actual, "on this target", tolerances)
        return lowered

    def same(
        self,
        body: str,
        feeds: Mapping[str, Array],
        constants: Mapping[str, Array] | None = None,
        rtol: float = 2e-5,
        opset: int = 21,
    ) -> Lowered:
        """`check` of `model` with the one output `y`."""
        return self.check(self.model(body, feeds, constants, opset=opset), feeds, rtol)
