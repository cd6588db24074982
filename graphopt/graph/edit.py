"""What every pass needs to rewrite a graph: free names, constants, new nodes in place of old ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt import ops
from graphopt.graph.constness import numbers_of, tensor_of
from graphopt.graph.state import PHASE

ORIGIN_KEY = "graphopt.origin"
"""Node metadata: names of the nodes of the loaded model that this node stands for, separated by spaces."""
RULE_KEY = "graphopt.rule"
"""Node metadata: the pass (and rule) that created this node."""

AttributeValue = int | float | str | Sequence[int] | Sequence[float]


class Editor:
    """Rewrites the main graph of `model` and remembers whether it did. `rule` is written into every new node."""

    def __init__(self, model: ir.Model, rule: str) -> None:
        """Edit the main graph of `model` for the pass or rule `rule`."""
        self.model = model
        self.graph = model.graph
        self.rule = rule
        self.modified = False
        self._values = _FreeNames(name for graph in model.graphs() for name in _value_names(graph))
        self._nodes = _FreeNames(node.name for graph in model.graphs() for node in graph)

    def fresh(self, hint: str) -> str:
        """A name that no value of the model has."""
        return self._values.take(hint)

    def constant(self, array: NDArray[Any], hint: str) -> ir.Value:
        """A new initializer."""
        name = self.fresh(hint)
        tensor = ir.Tensor(np.ascontiguousarray(array) if array.ndim else array, name=name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def insert(
        self,
        before: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, AttributeValue] | None = None,
        *,
        shape: Sequence[int] | ir.Shape | None,
        dtype: ir.DataType | None,
        name: str,
        output: str,
        origin: Iterable[ir.Node] = (),
        domain: str = "",
    ) -> ir.Value:
        """Insert a node with one output before `before`, and return that output. Its names become unique."""
        (value,) = self.emit(
            before, op_type, inputs, attributes, outputs=[(output, shape, dtype)], name=name, origin=origin,
            domain=domain,
        )  # fmt: skip
        return value

    def emit(
        self,
        before: ir.Node | None,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, AttributeValue] | None = None,
        *,
        outputs: Sequence[tuple[str, Sequence[int] | ir.Shape | None, ir.DataType | None]],
        name: str,
        origin: Iterable[ir.Node] = (),
        domain: str = "",
    ) -> tuple[ir.Value, ...]:
        """Insert a node before `before`, or after all others; returns its `outputs`, each (name, shape, dtype).

        All names become unique.
        """
        values = [
            ir.Value(
                name=self.fresh(output),
                shape=ir.Shape(shape) if shape is not None else None,
                type=ir.TensorType(dtype) if dtype is not None else None,
            )
            for output, shape, dtype in outputs
        ]
        metadata = {RULE_KEY: self.rule}
        sources = tuple(origin)
        if names := origin_of(*sources):
            metadata[ORIGIN_KEY] = names
        if phase := next((source.metadata_props[PHASE] for source in sources if PHASE in source.metadata_props), None):
            metadata[PHASE] = phase
        node = ir.node(
            op_type,
            list(inputs),
            dict(attributes or {}),
            domain=domain,
            outputs=values,
            name=self._nodes.take(name),
            metadata_props=metadata,
        )
        if before is None:
            self.graph.append(node)
        else:
            self.graph.insert_before(before, node)
        if domain == ops.DOMAIN:
            ops.ensure(self.model, op_type)
        self.modified = True
        return tuple(values)

    def can_replace(self, old: ir.Value, new: ir.Value) -> bool:
        """Whether `new` may stand for `old` everywhere: a graph output cannot be an input or another output."""
        taken = new.is_graph_input() or new.is_initializer() or new.is_graph_output()
        return not (old.is_graph_output() and taken)

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Every use of `old` (a graph output too) becomes a use of `new`.

        `new` takes the name of `old`, so that a value means the same in the dumps before and after, unless it must
        keep its own name (graph inputs, initializers, and values that other nodes used before).
        """
        was_output = old.is_graph_output()
        keeps_name = new.is_graph_input() or new.is_initializer() or (bool(new.uses()) and not was_output)
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        if not keeps_name and not new.is_graph_output() or was_output:
            self.rename(new, old)
        if new.shape is None:
            new.shape = old.shape
        if new.type is None:
            new.type = old.type
        self.modified = True

    def rename(self, new: ir.Value, old: ir.Value) -> None:
        """Give the name of `old`, which is about to be erased, to `new`."""
        name = old.name
        old.name = self.fresh(f"{name}.gone")
        new.name = name

    def erase(self, node: ir.Node) -> None:
        """Remove a node whose outputs are unused, then what only it used: initializers and producers."""
        pending = [node]
        while pending:
            dead = pending.pop()
            if dead.graph is None:
                continue  # two inputs came from it
            inputs = [value for value in dead.inputs if value is not None]
            self.graph.remove(dead, safe=True)
            for value in inputs:
                if value.uses() or value.is_graph_output():
                    continue
                producer = value.producer()
                if value.is_initializer():  # asked first: the flag of a graph input can be stale on an initializer
                    self.graph.initializers.pop(str(value.name), None)
                elif producer is not None and producer.graph is self.graph and _unused(producer):
                    pending.append(producer)
        self.modified = True

    def swap(self, old: ir.Node, new: ir.Value) -> None:
        """Replace the single output of `old` by `new` and erase `old`."""
        self.replace(old.outputs[0], new)
        self.erase(old)


Rule = Callable[[Editor, ir.Node], str | None]
"""Rewrites a node through the editor if it can; a returned sentence is a refusal to report."""


class _FreeNames:
    """Hands out each name once."""

    def __init__(self, taken: Iterable[str | None]) -> None:
        self._taken = set(taken)
        self._numbers: dict[str, int] = {}

    def take(self, hint: str) -> str:
        name = hint
        while name in self._taken:
            self._numbers[hint] = self._numbers.get(hint, 0) + 1
            name = f"{hint}.{self._numbers[hint]}"
        self._taken.add(name)
        return name


def _value_names(graph: ir.Graph) -> Iterable[str | None]:
    yield from (value.name for value in graph.inputs)
    yield from graph.initializers
    for node in graph:
        yield from (value.name for value in node.outputs)


def _unused(node: ir.Node) -> bool:
    return not any(value.uses() or value.is_graph_output() for value in node.outputs)


def origin_of(*nodes: ir.Node) -> str:
    """Names of the original nodes behind `nodes`, each once, separated by spaces."""
    names: dict[str, None] = {}
    for node in nodes:
        for name in node.metadata_props.get(ORIGIN_KEY, node.name or "").split():
            names[name] = None
    return " ".join(names)


def dims(value: ir.Value | None) -> tuple[int, ...] | None:
    """Static extents of a tensor, or None."""
    if value is None or value.shape is None or value.shape.is_dynamic():
        return None
    return value.shape.numpy()


def array_of(value: ir.Value | None) -> NDArray[Any] | None:
    """The numbers of an initializer, or None for anything else."""
    return numbers_of(value) if value is not None and value.is_initializer() else None


def scalar_of(value: ir.Value | None) -> float | None:
    """The one number of an initializer of one element, or None."""
    if (tensor := tensor_of(value)) is None or tensor.size != 1:
        return None
    array = array_of(value)
    return None if array is None or array.dtype.kind not in "fiu" else float(array.reshape(()))


def is_op(node: ir.Node | None, *op_types: str) -> bool:
    """Whether `node` is one of these standard operators."""
    return node is not None and node.domain == "" and node.op_type in op_types


def is_custom(node: ir.Node | None, *op_types: str) -> bool:
    """Whether `node` calls one of these graphopt functions."""
    return node is not None and node.domain == ops.DOMAIN and node.op_type in op_types


def only_use(value: ir.Value) -> ir.Node | None:
    """The one node that uses `value`, when nothing else does and it is no graph output."""
    uses = value.uses()
    return next(iter(uses)).node if len(uses) == 1 and not value.is_graph_output() else None


def nbytes(value: ir.Value) -> int:
    """Bytes of a tensor of static shape; 0 when unknown."""
    extents = dims(value)
    return 0 if extents is None or value.dtype is None else int(math.prod(extents) * value.dtype.itemsize)


def ints(node: ir.Node, name: str, default: Sequence[int]) -> list[int]:
    """An integer-list attribute."""
    return list(node.attributes.get_ints(name, tuple(default)) or default)
