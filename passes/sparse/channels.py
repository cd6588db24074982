"""Which axes of which values carry the same channels, and which constants would have to follow if those were permuted.

    y = Add(MatMul(x, w), b)   z = MatMul(Relu(y), v)

The columns of w, b, the last axis of y and the rows of v are one class: permuting all of them alike changes nothing
that anybody sees. A class is fixed where a node depends on the order of its channels, and where a user sees them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from graphopt.graph.constness import is_constant
from graphopt.graph.edit import dims, ints

Axis = tuple[ir.Value, int]

ELEMENTWISE = frozenset(
    ("Abs", "Add", "Cast", "Ceil", "Clip", "Cos", "Div", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid",
     "HardSwish", "Identity", "LeakyRelu", "Log", "Max", "Min", "Mish", "Mul", "Neg", "PRelu", "Pow", "Reciprocal",
     "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tanh",
     "ThresholdedRelu", "Where")
)  # fmt: skip
"""Operators whose result at a place depends on their operands at that place, which broadcast."""


@dataclass(frozen=True, slots=True)
class Operand:
    """A constant operand of a node that has the channels along `axis`; `produces` where these are its outputs."""

    node: ir.Node
    index: int
    axis: int
    produces: bool = False


@dataclass(slots=True, eq=False)
class Channels:
    """A class of axes: the values that carry them, the constants that would follow, and whether they are fixed."""

    extent: int
    values: list[Axis] = field(default_factory=list)
    operands: list[Operand] = field(default_factory=list)
    fixed: bool = False


def classes(graph: ir.Graph) -> list[Channels]:
    """The classes of the axes of `graph` that nothing fixes and that some product or convolution produces."""
    finder = _Finder()
    for value in (*graph.inputs, *graph.outputs):
        finder.fix(value)
    for node in graph:
        known = _RULES.get(node.op_type) if node.domain == "" else None
        if any(isinstance(a, ir.Attr) and a.type is ir.AttributeType.GRAPH for a in node.attributes.values()):
            for captured in _captured(node):
                finder.fix(captured)
        handled = known is not None and known(finder, node)
        if not handled:
            for operand in (*node.inputs, *node.outputs):
                finder.fix(operand)
    return [c for c in finder.roots() if not c.fixed and any(operand.produces for operand in c.operands)]


def _captured(node: ir.Node) -> Iterator[ir.Value]:
    """The values of the outer graph that subgraphs of `node` read."""
    for attribute in node.attributes.values():
        if isinstance(attribute, ir.Attr) and attribute.type is ir.AttributeType.GRAPH:
            graph = attribute.as_graph()
            yield from graph.outputs
            for inner in graph.all_nodes():
                yield from (value for value in inner.inputs if value is not None)


class _Finder:
    """Unites axes."""

    def __init__(self) -> None:
        self._classes: dict[tuple[int, int], Channels] = {}
        self._alive: dict[int, ir.Value] = {}

    def of(self, axis: Axis) -> Channels:
        value, at = axis
        key = id(value), at
        if key not in self._classes:
            self._alive[id(value)] = value
            shape = dims(value)
            assert shape is not None
            self._classes[key] = Channels(shape[at], [axis])
        return self._classes[key]

    def same(self, a: Axis, b: Axis) -> None:
        """Unite the classes of two axes."""
        first, second = self.of(a), self.of(b)
        if first is second:
            return
        if first.extent != second.extent:
            first.fixed = second.fixed = True
            return
        first.values += second.values
        first.operands += second.operands
        first.fixed |= second.fixed
        for value, at in second.values:
            self._classes[id(value), at] = first

    def fix(self, value: ir.Value | None) -> None:
        """Fix all axes of a value that is no constant."""
        if value is None or is_constant(value):
            return
        for at in range(len(dims(value) or ())):
            self.of((value, at)).fixed = True

    def roots(self) -> list[Channels]:
        """All classes."""
        return list({id(each): each for each in self._classes.values()}.values())


Rule = Callable[[_Finder, ir.Node], bool]
"""Unites the axes of a node's operands and result; False where it does not know the node."""


def _ranks(node: ir.Node) -> bool:
    """Whether all operands and results have static shapes."""
    return all(value is None or dims(value) is not None for value in (*node.inputs, *node.outputs))


def _elementwise(finder: _Finder, node: ir.Node) -> bool:
    if not _ranks(node) or len([value for value in node.outputs if value.uses()]) > 1:
        return False
    y = node.outputs[0]
    shape = dims(y) or ()
    for index, value in enumerate(node.inputs):
        if value is None:
            continue
        own = dims(value) or ()
        for axis, extent in enumerate(own):
            at = axis + len(shape) - len(own)
            if extent != shape[at]:
                continue  # broadcast: the same for all channels
            if is_constant(value):
                finder.of((y, at)).operands.append(Operand(node, index, axis))
            else:
                finder.same((value, axis), (y, at))
    return True


def _linear(finder: _Finder, node: ir.Node) -> bool:
    x, w, y = node.inputs[0], node.inputs[1], node.outputs[0]
    if x is None or not _ranks(node) or not is_constant(w) or is_constant(x):
        return False
    shape, weight, out = dims(x) or (), dims(w) or (), dims(y) or ()
    if len(weight) != 2 or len(shape) < 2 or len(out) != len(shape) or node.attributes.get_int("transA", 0) == 1:
        return False
    transposed = bool(node.attributes.get_int("transB", 0)) if node.op_type == "Gemm" else False
    finder.of((x, len(shape) - 1)).operands.append(Operand(node, 1, 1 if transposed else 0))
    finder.of((y, len(out) - 1)).operands.append(Operand(node, 1, 0 if transposed else 1, produces=True))
    for axis in range(len(shape) - 1):
        finder.same((x, axis), (y, axis))
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None:
        return True
    own = dims(bias) or ()
    if not is_constant(bias) or (len(own) > 1 and math.prod(own[:-1]) != 1):
        return False
    if own and own[-1] == out[-1]:
        finder.of((y, len(out) - 1)).operands.append(Operand(node, 2, len(own) - 1))
    return True


def _conv(finder: _Finder, node: ir.Node) -> bool:
    x, w, y = node.inputs[0], node.inputs[1], node.outputs[0]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if x is None or not _ranks(node) or not is_constant(w) or (bias is not None and not is_constant(bias)):
        return False
    shape, weight, out = dims(x) or (), dims(w) or (), dims(y) or ()
    group = node.attributes.get_int("group", 1) or 1
    if group == 1:
        finder.of((x, 1)).operands.append(Operand(node, 1, 1))
        finder.of((y, 1)).operands.append(Operand(node, 1, 0, produces=True))
    elif group == shape[1] == out[1] and weight[1] == 1:
        finder.same((x, 1), (y, 1))
        finder.of((y, 1)).operands.append(Operand(node, 1, 0))
    else:
        return False
    if bias is not None:
        finder.of((y, 1)).operands.append(Operand(node, 2, 0))
    finder.same((x, 0), (y, 0))
    _fix_planes(finder, x, y)
    return True


def _fix_planes(finder: _Finder, *values: ir.Value) -> None:
    for value in values:
        for axis in range(2, len(dims(value) or ())):
            finder.of((value, axis)).fixed = True


def _pool(finder: _Finder, node: ir.Node) -> bool:
    x, y = node.inputs[0], node.outputs[0]
    if x is None or not _ranks(node) or len(node.outputs) > 1:
        return False
    for axis in (0, 1):
        finder.same((x, axis), (y, axis))
    _fix_planes(finder, x, y)
    return True


def _normalization(finder: _Finder, node: ir.Node) -> bool:
    """BatchNormalization of axis 1, LayerNormalization of the last axis: with a number for each channel."""
    x, y = node.inputs[0], node.outputs[0]
    if x is None or not _ranks(node) or any(value.uses() for value in node.outputs[1:]):
        return False
    shape = dims(x) or ()
    channel = 1
    if node.op_type == "LayerNormalization":
        channel = len(shape) - 1
        if (node.attributes.get_int("axis", -1) or 0) % len(shape) != channel:
            return False
    _all_axes(finder, x, y)
    for index, value in enumerate(node.inputs[1:], 1):
        if value is None:
            continue
        if not is_constant(value) or dims(value) != (shape[channel],):
            return False
        finder.of((y, channel)).operands.append(Operand(node, index, 0))
    return True


def _softmax(finder: _Finder, node: ir.Node) -> bool:
    x, y = node.inputs[0], node.outputs[0]
    if x is None or not _ranks(node):
        return False
    _all_axes(finder, x, y)
    return True


def _all_axes(finder: _Finder, x: ir.Value, y: ir.Value) -> None:
    for axis in range(len(dims(x) or ())):
        finder.same((x, axis), (y, axis))


def _transpose(finder: _Finder, node: ir.Node) -> bool:
    x, y = node.inputs[0], node.outputs[0]
    if x is None or not _ranks(node) or is_constant(x):
        return False
    rank = len(dims(x) or ())
    for at, axis in enumerate(ints(node, "perm", list(range(rank))[::-1])):
        finder.same((x, axis), (y, at))
    return True


def _reshape(finder: _Finder, node: ir.Node) -> bool:
    """Axes stay that have the same extent, and as many elements before them."""
    x, y = node.inputs[0], node.outputs[0]
    if x is None or not _ranks(node) or is_constant(x):
        return False
    shape, out = dims(x) or (), dims(y) or ()
    before = {(math.prod(shape[:axis]), extent): axis for axis, extent in enumerate(shape) if extent > 1}
    kept = set()
    for at, extent in enumerate(out):
        axis = before.get((math.prod(out[:at]), extent)) if extent > 1 else None
        if axis is None:
            finder.of((y, at)).fixed = extent > 1 or finder.of((y, at)).fixed
        else:
            finder.same((x, axis), (y, at))
            kept.add(axis)
    for axis, extent in enumerate(shape):
        if axis not in kept and extent > 1:
            finder.of((x, axis)).fixed = True
    return True


_RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    "MatMul": _linear,
    "Gemm": _linear,
    "Conv": _conv,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "GlobalAveragePool": _pool,
    "GlobalMaxPool": _pool,
    "BatchNormalization": _normalization,
    "LayerNormalization": _normalization,
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
}
