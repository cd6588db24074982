"""The parameters of a training model, their gradients, the inputs of a step, and where an update may stand."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Sequence

import onnx_ir as ir

from graphopt.errors import GraphoptError, ModelError
from graphopt.graph.edit import Editor, dims
from graphopt.graph.segments import read_by
from graphopt.graph.state import GRADIENT
from graphopt.passes.training.sparse.parameter import SPARSE, SparseParameter

VECTORS = "vectors"
"""The pattern for all parameters of at most one axis: biases, and scales of normalizations."""


def gradients_of(parameters: Collection[ir.Value], graph: ir.Graph) -> dict[ir.Value, ir.Value]:
    """The graph output that is the gradient of each parameter, of those that have one.

    Raises:
        ModelError: the metadata names no output, or one of another shape.
    """
    outputs = {output.name: output for output in graph.outputs}
    found = {}
    for parameter in parameters:
        name = parameter.metadata_props.get(GRADIENT)
        if name is None:
            continue
        if name not in outputs:
            raise ModelError(f"the gradient of {parameter.name}, {name}, is no output of the graph; list it as one")
        if dims(outputs[name]) is None or dims(outputs[name]) != dims(parameter):
            raise ModelError(
                f"parameter {parameter.name} is {parameter.shape} and its gradient {name} is {outputs[name].shape}; "
                "both must have one static shape"
            )
        found[parameter] = outputs[name]
    return found


def matching(patterns: str, parameters: Sequence[ir.Value]) -> frozenset[ir.Value]:
    """The parameters that `patterns` name: `vectors`, or patterns of names as `*.bias`, with + between them.

    Raises:
        GraphoptError: one of the patterns names none.
    """
    found: set[ir.Value] = set()
    for pattern in filter(None, patterns.split("+")):
        if pattern == VECTORS:
            found |= {value for value in parameters if value.shape is not None and len(value.shape) <= 1}
            continue
        named = {value for value in parameters if fnmatch.fnmatchcase(_own_name(value), pattern)}
        if not named and parameters:
            names = [_own_name(value) for value in parameters]
            shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
            raise GraphoptError(f"no parameter matches {pattern!r}; the parameters are {shown}")
        found |= named
    return frozenset(found)


def _own_name(parameter: ir.Value) -> str:
    """The name that a user knows: of a sparse parameter that of the dense one."""
    sparse = parameter.metadata_props.get(SPARSE)
    return str(parameter.name) if sparse is None else SparseParameter.from_json(sparse).name


def new_input(editor: Editor, name: str, dtype: ir.DataType) -> ir.Value:
    """A new scalar input `name`; a value inside of the graph that has this name gets another one.

    Raises:
        ModelError: an input, output or initializer has the name.
    """
    graph = editor.graph
    if name in graph.initializers or any(value.name == name for value in (*graph.inputs, *graph.outputs)):
        raise ModelError(f"the model has a value called {name}, which is an input of a training step; rename it")
    for value in (output for node in graph for output in node.outputs if output.name == name):
        value.name = editor.fresh(f"{name}.value")
    value = ir.Value(name=name, shape=ir.Shape(()), type=ir.TensorType(dtype))
    graph.inputs.append(value)
    return value


class Places:
    """Where new nodes may stand in a graph, as it is now."""

    def __init__(self, graph: ir.Graph) -> None:
        """Remember the order of the nodes."""
        self._nodes = list(graph)
        self._made = {value: place for place, node in enumerate(self._nodes) for value in node.outputs}
        self._read = {value: place for place, node in enumerate(self._nodes) for value in read_by(node)}

    def after(self, value: ir.Value, unread: ir.Value | None = None) -> ir.Node | None:
        """The node right after the one that makes `value`, and after all that read `unread`; None for the end."""
        place = 1 + max(self._made.get(value, -1), -1 if unread is None else self._read.get(unread, -1))
        return self._nodes[place] if place < len(self._nodes) else None
