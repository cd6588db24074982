"""The layers that can be pruned: products and convolutions with constant weights, by the names of the user's file."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt.graph.constness import is_state, stored
from graphopt.graph.edit import ints, is_op
from graphopt.passes.prune.granularity import Shape

_FLOATS = frozenset((ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16))


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A MatMul, Gemm or Conv. `holder` is the value that keeps its weights, `axes` put them as [outputs, inputs, ...].

    `sharers` are the layers that read the same weights, itself among them; `others` the other nodes that do.
    """

    name: str
    node: ir.Node
    holder: ir.Value
    axes: tuple[int, ...]
    sharers: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    @property
    def conv(self) -> bool:
        """Whether it is a convolution."""
        return self.node.op_type == "Conv"

    @property
    def aliases(self) -> tuple[str, ...]:
        """The names that a user may call it by: its own, and that of its weights."""
        return self.name, str(self.holder.name)

    @property
    def shape(self) -> Shape:
        """[outputs, inputs, taps]."""
        stored_shape = held(self.holder).shape.numpy()
        extents = [stored_shape[axis] for axis in self.axes]
        return extents[0], extents[1], math.prod(extents[2:])

    @property
    def depthwise(self) -> bool:
        """Whether it is a convolution that mixes no channels."""
        return self.conv and self.shape[1] == 1 and (self.node.attributes.get_int("group", 1) or 1) > 1

    def weights(self) -> NDArray[Any]:
        """The weights [outputs, inputs, taps]; not to be written to."""
        return held(self.holder).numpy().transpose(self.axes).reshape(self.shape)

    def replace(self, weights: NDArray[Any]) -> None:
        """Give the layer, and all that read the same, other weights [outputs, inputs, taps]."""
        extents = [held(self.holder).shape.numpy()[axis] for axis in self.axes]
        hold(self.holder, weights.reshape(extents).transpose(np.argsort(self.axes)))


def layers(graph: ir.Graph) -> list[Layer]:
    """The layers of the main graph in order, one for each weight: the first that reads it.

    No two have one name: of nodes with equal names the later ones are `a_1`, `a_2`, as in what `compile` prints.
    """
    names_of = _names(graph)
    found: dict[int, list[Layer]] = {}
    for node in graph:
        layer = _layer(node, names_of[node])
        if layer is not None:
            found.setdefault(id(layer.holder), []).append(layer)
    result = []
    for sharing in found.values():
        first = sharing[0]
        known = {id(layer.node) for layer in sharing}
        others = tuple(dict.fromkeys(name for name in _other_readers(first.holder, known)))
        names = tuple(layer.name for layer in sharing)
        result.append(Layer(first.name, first.node, first.holder, first.axes, names, others))
    return result


def name_of(node: ir.Node) -> str:
    """The node's name, or that of its first output if it has none."""
    return node.name or next((str(value.name) for value in node.outputs if value.name), node.op_type)


def _names(graph: ir.Graph) -> dict[ir.Node, str]:
    """Unique names of the nodes, those that `frontend.names` would give them."""
    present = {node.name for node in graph.all_nodes()}
    names: dict[ir.Node, str] = {}
    used: set[str] = set()
    counts: Counter[str] = Counter()
    for node in graph:
        name = wanted = name_of(node)
        while name in used or (name != node.name and name in present):
            counts[wanted] += 1
            name = f"{wanted}_{counts[wanted]}"
        used.add(name)
        names[node] = name
    return names


def _layer(node: ir.Node, name: str) -> Layer | None:
    if not is_op(node, "MatMul", "Gemm", "Conv") or len(node.inputs) < 2:
        return None
    source = trace(node.inputs[1])
    if source is None:
        return None
    holder, axes = source
    tensor = held(holder)
    rank = len(axes)
    if tensor.dtype not in _FLOATS or (rank < 3 if is_op(node, "Conv") else rank != 2) or not tensor.size:
        return None
    if is_op(node, "MatMul") or (is_op(node, "Gemm") and not node.attributes.get_int("transB", 0)):
        axes = axes[::-1]
    return Layer(name, node, holder, axes)


def trace(value: ir.Value | None) -> tuple[ir.Value, tuple[int, ...]] | None:
    """The value that holds the numbers of a constant, and the axes of those numbers in its order.

    Looks through Identity and Transpose. None for a value that is computed otherwise, or is an input.
    """
    steps: list[Sequence[int] | None] = []
    while value is not None and not _holds(value):
        producer = value.producer()
        if producer is None or not is_op(producer, "Identity", "Transpose"):
            return None
        steps.append(ints(producer, "perm", ()) or None if producer.op_type == "Transpose" else ())
        value = producer.inputs[0]
    if value is None:
        return None
    axes = list(range(len(held(value).shape)))
    for perm in reversed(steps):
        if perm is None:
            axes.reverse()
        elif perm:
            axes = [axes[axis] for axis in perm]
    return value, tuple(axes)


def _holds(value: ir.Value) -> bool:
    if is_state(value):
        return False
    return (value.is_initializer() and stored(value) is not None) or _constant(value) is not None


def _constant(value: ir.Value) -> ir.TensorProtocol | None:
    node = value.producer()
    if node is None or not is_op(node, "Constant") or "value" not in node.attributes:
        return None
    attribute = node.attributes["value"]
    return None if attribute.is_ref() else attribute.as_tensor()


def held(value: ir.Value) -> ir.TensorProtocol:
    """The tensor that an initializer or the output of a Constant holds."""
    tensor = _constant(value) if not value.is_initializer() else stored(value)
    assert tensor is not None
    return tensor


def hold(value: ir.Value, array: NDArray[Any]) -> None:
    """Give an initializer or a Constant other numbers of the same dtype and shape."""
    old = held(value)
    tensor = ir.Tensor(np.ascontiguousarray(array), dtype=old.dtype, name=old.name)
    if value.is_initializer():
        value.const_value = tensor
        return
    node = value.producer()
    assert node is not None
    node.attributes["value"] = ir.AttrTensor("value", tensor)
    if stored(value) is not None:
        value.const_value = tensor


def numbers(value: ir.Value | None) -> NDArray[Any] | None:
    """The numbers of a constant, also seen through operators that only change its shape; None for any other value."""
    source = trace(value)
    if source is not None:
        return held(source[0]).numpy().transpose(source[1])
    node = None if value is None else value.producer()
    if node is None or not is_op(node, "Identity", "Transpose", "Unsqueeze", "Squeeze", "Reshape"):
        return None
    array = numbers(node.inputs[0])
    if array is None or node.op_type in ("Identity", "Transpose"):
        return None if array is None or node.op_type == "Transpose" else array
    given = numbers(node.inputs[1]) if len(node.inputs) > 1 else None
    if len(node.inputs) > 1 and given is None:
        return None
    sizes = [int(each) for each in given.reshape(-1)] if given is not None else ints(node, "axes", ())
    if node.op_type == "Unsqueeze":
        return np.expand_dims(array, tuple(sizes))
    if node.op_type == "Squeeze":
        return np.squeeze(array, tuple(sizes) if sizes else None)
    if 0 in sizes:
        return None
    return array.reshape(sizes)


def _other_readers(value: ir.Value, known: set[int]) -> Iterator[str]:
    if value.is_graph_output():
        yield f"the output {value.name}"
    for node, _ in value.uses():
        if is_op(node, "Identity", "Transpose"):
            yield from _other_readers(node.outputs[0], known)
        elif id(node) not in known:
            yield f"{name_of(node)} ({node.op_type})"
