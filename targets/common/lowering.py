"""A Relax function becomes a list of kernel calls: fusion, schedules, views, and constants computed ahead of time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax, tirx
from tvm.ir import GenericConst

from graphopt.errors import GraphoptError
from graphopt.graph.constness import constant_array, is_constant
from graphopt.lowering.target import Lowered
from graphopt.program.program import KernelCall, Place, Value
from graphopt.targets.common import concat_views, fusion_limits, origins
from graphopt.targets.common.identity import Identity, identify
from graphopt.targets.common.relax_import import Imported
from graphopt.targets.common.tir import ieee, inlining, literals
from graphopt.targets.common.tir.in_place import in_place


class Scheduler(Protocol):
    """Schedules kernels in the order of the calls; equal kernels have one symbol."""

    def code(self, identity: Identity) -> tuple[Any, str]:
        """The entry of `Lowered.functions` for a kernel, and a note about its schedule."""


VIEWS = ("relax.reshape", "relax.flatten", "relax.squeeze", "relax.expand_dims")
"""Operators that only change the shape: they are not fused, and cost nothing."""


def legalize(module: tvm.IRModule) -> tvm.IRModule:
    """Legalize each Relax operator to a PrimFunc; views stay, nothing is fused."""
    return relax.transform.LegalizeOps(literals.LEGALIZED, list(VIEWS))(module)


def obstacle(module: tvm.IRModule) -> str | None:
    """Why a legalized module holds more than kernels and views, in a sentence; None if it does not."""
    for block in module["main"].body.blocks:
        for binding in block.bindings:
            value = binding.value
            if isinstance(value, relax.Tuple | relax.TupleGetItem | relax.Var | GenericConst):
                continue
            name = str(value.op.name) if hasattr(value, "op") and hasattr(value.op, "name") else type(value).__name__
            if name != "relax.call_tir" and name not in VIEWS and concat_views.parts_of(value) is None:
                return f"TVM leaves {name} to its virtual machine, which a program does not have"
    return None


def fuse(
    module: tvm.IRModule, owners: origins.Owners, separate: bool
) -> tuple[tvm.IRModule, dict[relax.Var, tuple[str, ...]]]:
    """Fuse elementwise consumers into their producers (TVM's FuseOps and FuseTIR).

    Args:
        module: legalized.
        owners: of the variables of its `main`.
        separate: leave every operator a kernel of its own.

    Returns:
        The module, and for each variable of its `main` the ONNX nodes that are computed for it.
    """
    live = relax.transform.DeadCodeElimination()(module)
    grouped = (
        live if separate else relax.transform.FuseOps()(fusion_limits.cut(relax.transform.AnnotateTIROpPattern()(live)))
    )
    traced = origins.trace(live, grouped, owners)
    # both keep the variables of main, or drop aliases
    return relax.transform.RewriteDataflowReshape()(relax.transform.FuseTIR()(grouped)), traced


def lower(imported: Imported, builder: Scheduler, prefix: str, separate: bool = False) -> Lowered:
    """Fuse, schedule and list the calls of `imported.main`.

    Args:
        builder: gives every kernel its schedule; equal kernels, of whatever segment, have one symbol.
        prefix: starts every new value name, so that segments share one name space.
        separate: fuse nothing.
    """
    ieee.register()
    legal = legalize(imported.module)
    module, traced = fuse(legal, origins.legalized(imported.owners, legal), separate)
    lowered = Lowered(inputs=imported.inputs)
    names: dict[relax.Var, str] = {}
    main = module["main"]
    parameters = list(main.params)
    for parameter, name in zip(parameters, imported.inputs, strict=False):
        names[parameter] = name
        _declare(lowered, name, parameter.ty, Place.ARENA)
    for parameter in parameters[len(imported.inputs) :]:
        value = imported.weights[str(parameter.name)]
        name = names[parameter] = str(value.name)
        assert is_constant(value)
        _constant(lowered, name, constant_array(value))
    reader = _Reader(module, lowered, names, builder, prefix)
    for variable, value in origins.bindings(main):
        reader.bind(variable, value, traced.get(variable, ()))
    reader.name_outputs(main.body.body, imported.outputs)
    concat_views.flatten(lowered.values)
    return lowered


def lower_copy(source: Value, result: Value, builder: Scheduler) -> Lowered:
    """One call that copies `source` into `result`, of its type and shape."""
    assert source.shape is not None
    kernel = identify(ieee.hide(concat_views.copy_kernel(source.shape, source.dtype)), "copy")
    function, _ = builder.code(kernel)
    call = KernelCall(kernel.symbol, (source.name,), (result.name,), origin=(f"copy of {source.name}",))
    values = {source.name: source, result.name: result}
    return Lowered([call], values, {kernel.symbol: function}, inputs=call.inputs, outputs=call.outputs)


def _declare(lowered: Lowered, name: str, ty: relax.TensorType, place: Place, of: str = "") -> None:
    shape = tuple(int(d) for d in ty.shape)
    lowered.values[name] = Value(name, str(ty.dtype), shape, place, of=of)


def _constant(lowered: Lowered, name: str, array: NDArray[Any]) -> None:
    lowered.values[name] = Value(name, str(array.dtype), tuple(array.shape), Place.WEIGHT)
    lowered.constants[name] = array


class _Reader:
    """Walks the bindings of a fused `main` and writes calls and values."""

    def __init__(
        self, module: tvm.IRModule, lowered: Lowered, names: dict[relax.Var, str], builder: Scheduler, prefix: str
    ) -> None:
        self.module, self.lowered, self.names, self.builder, self.prefix = module, lowered, names, builder, prefix
        self.tuples: dict[relax.Var, list[str]] = {}
        self.symbols: dict[str, str] = {}
        self.in_place: dict[str, tuple[tuple[int, int], ...]] = {}  # by symbol
        self.written: set[str] = set()  # by kernels of this segment: where they lie is still free
        self.count = 0

    def fresh(self, stem: str) -> str:
        self.count += 1
        return f"{self.prefix}{stem}{self.count}"

    def bind(self, variable: relax.Var, value: relax.Expr, nodes: tuple[str, ...]) -> None:
        """Read one binding of `main`: a kernel, a view, or an alias."""
        if isinstance(value, relax.Tuple):
            self.tuples[variable] = [self.name_of(item) for item in value.fields]
        elif isinstance(value, relax.TupleGetItem):
            self.names[variable] = self.tuples[value.tuple_value][int(value.index)]
        elif isinstance(value, relax.Var):
            if value in self.tuples:
                self.tuples[variable] = self.tuples[value]
            else:
                self.names[variable] = self.names[value]
        elif isinstance(value, GenericConst):
            self.names[variable] = self.name_of(value)
        elif str(value.op.name) == "relax.call_tir":
            self._call(variable, value, nodes)
        elif (parts := concat_views.parts_of(value)) is not None:
            self._concat_view(variable, parts, nodes)
        elif str(value.op.name) in VIEWS:
            name = self.names[variable] = self.fresh("view")
            _declare(self.lowered, name, variable.ty, Place.VIEW, self.name_of(value.args[0]))
        else:
            raise GraphoptError(
                f"operator {value.op.name} of TVM is no kernel; report this model as a bug of graphopt."
            )

    def _call(self, variable: relax.Var, call: relax.Call, nodes: tuple[str, ...]) -> None:
        function = call.args[0]
        hint = str(function.name_hint)
        symbol = self.symbols.get(hint)
        if symbol is None:
            symbol = self.symbols[hint] = self._kernel(self.module[function], hint)
        inputs = tuple(self.name_of(item) for item in call.args[1].fields)
        types = list(variable.ty.fields) if isinstance(variable.ty, relax.TupleType) else [variable.ty]
        outputs = []
        for ty in types:
            name = self.fresh("t")
            _declare(self.lowered, name, ty, Place.ARENA)
            outputs.append(name)
        self.written.update(outputs)
        if isinstance(variable.ty, relax.TupleType):
            self.tuples[variable] = outputs
        else:
            self.names[variable] = outputs[0]
        pairs = self.in_place[symbol]
        self.lowered.calls.append(KernelCall(symbol, inputs, tuple(outputs), origin=nodes, in_place=pairs))

    def _kernel(self, function: tirx.PrimFunc, hint: str) -> str:
        """Add a PrimFunc to the functions; return its symbol."""
        kernel = identify(ieee.hide(inlining.inline(function)), hint)
        if kernel.symbol not in self.lowered.functions:
            self.in_place[kernel.symbol] = in_place(function)
            self.lowered.functions[kernel.symbol], note = self.builder.code(kernel)
            if note:
                self.lowered.notes.append(f"kernel {kernel.symbol}: {note}")
        return kernel.symbol

    def _concat_view(self, variable: relax.Var, parts: list[relax.Expr], nodes: tuple[str, ...]) -> None:
        """Make parts that kernels of this segment write views of the result; copy the others into their views."""
        name = self.names[variable] = self.fresh("t")
        _declare(self.lowered, name, variable.ty, Place.ARENA)
        values = self.lowered.values
        for part, offset in concat_views.offsets([values[self.name_of(part)] for part in parts]):
            base, inside = concat_views.root(part.name, values)
            if base in self.written and base != name and (inside, values[base].nbytes) == (0, part.nbytes):
                values[base] = replace(values[base], place=Place.VIEW, of=name, offset=offset)
                continue
            target = self.fresh("part")
            assert part.shape is not None
            values[target] = Value(target, part.dtype, part.shape, Place.VIEW, offset, name)
            symbol = self._kernel(concat_views.copy_kernel(part.shape, part.dtype), "copy")
            self.lowered.calls.append(KernelCall(symbol, (part.name,), (target,), origin=nodes))
        self.written.add(name)

    def name_of(self, expression: relax.Expr) -> str:
        """Name of a variable's value; a constant becomes a weight."""
        if isinstance(expression, GenericConst):
            name = self.fresh("const")
            _constant(self.lowered, name, np.array(expression.value.numpy()))
            return name
        return self.names[expression]

    def name_outputs(self, result: relax.Var, wanted: tuple[str, ...]) -> None:
        """Give the results the names that the segment promises."""
        self.lowered.outputs = wanted
        rename: dict[str, str] = {}
        for name, source in zip(wanted, self.tuples[result], strict=True):
            value = self.lowered.values[source]
            internal = source.startswith(self.prefix) and value.place is not Place.WEIGHT
            if internal and source not in rename:
                rename[source] = name
            elif name != source:  # an input, a constant, or a second name for one result: the same bytes again
                storage, offset = concat_views.root(source, self.lowered.values)
                alias = Value(name, value.dtype, value.shape, Place.VIEW, offset, rename.get(storage, storage))
                self.lowered.values[name] = alias
        _rename(self.lowered, rename)


def _rename(lowered: Lowered, names: dict[str, str]) -> None:
    def new(name: str) -> str:
        return names.get(name, name)

    lowered.values = {new(k): replace(v, name=new(k), of=new(v.of)) for k, v in lowered.values.items()}
    lowered.calls = [
        replace(c, inputs=tuple(map(new, c.inputs)), outputs=tuple(map(new, c.outputs))) for c in lowered.calls
    ]
