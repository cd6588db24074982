"""Constraints that the consumers of a value put on its numbers, so that valid random inputs can be drawn.

y = Gather(d[5, 7], i, axis=1)     i in [0, 7)
y = Reshape(x[2, 6], s)            s = [2, 6], or [-1, 1, ...] for another length
c = Equal(rate, 16000)             rate = 16000 now and then
y = Log(p)                         p above 0

Values are followed through operators that keep numbers as they are (Cast, Reshape, Concat, an integer constant added),
into subgraphs and functions, and out of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt.graph.constness import numbers_of

_MAX_USES = 10_000
_MAX_CHOICES = 16

_UNCHANGED = frozenset({
    "Concat", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip
_COMPARISONS = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Where", "Not", "And", "Or"})


@dataclass(slots=True)
class Demand:
    """What all consumers of a value accept: numbers in [low, high), and `choices` that they compare it with.

    `exact` is the whole array, where only one makes sense. `mask`: zeros and ones. `positive`, `unit` (from -1 to 1)
    and `above_one` constrain floating-point numbers.
    """

    low: int | None = None
    high: int | None = None
    choices: list[float] = field(default_factory=list)
    exact: NDArray[Any] | None = None
    mask: bool = False
    positive: bool = False
    unit: bool = False
    above_one: bool = False

    def within(self, low: int, high: int | None = None) -> None:
        """Narrow the range."""
        self.low = low if self.low is None else max(self.low, low)
        if high is not None:
            self.high = high if self.high is None else min(self.high, high)


@dataclass(frozen=True, slots=True)
class _Use:
    """A value as operand `position` of `node`: the drawn numbers plus `offset`, all of them if `complete`."""

    node: ir.Node
    position: int
    offset: int
    complete: bool
    value: ir.Value
    demand: Demand
    arguments: Mapping[ir.Value, ir.Value]

    def operand(self, position: int) -> ir.Value | None:
        """The operand at `position`; for an input of a function, the argument of its call."""
        value = self.node.inputs[position] if position < len(self.node.inputs) else None
        return None if value is None else self.arguments.get(value, value)

    def shape(self, position: int = 0) -> tuple[int, ...]:
        """Shape of the operand at `position`; () where it is not static."""
        return _shape(self.operand(position))

    def constant(self, position: int) -> NDArray[Any] | None:
        """The numbers of the operand at `position`, None where it is no constant."""
        value = self.operand(position)
        return numbers_of(value)

    def count(self) -> int:
        """Number of elements of the value; 0 where its rank is not known."""
        return int(np.prod(_shape(self.value), dtype=np.int64)) if self.value.shape is not None else 0

    def index(self, extents: tuple[int, ...], first: int = 0) -> None:
        """Require indices from `first` up to, but not including, the smallest of `extents`."""
        if extents:
            self.demand.within(first - self.offset, max(min(extents), first + 1) - self.offset)

    def exactly(self, numbers: Any) -> None:
        """Require exactly these numbers, if the value has as many elements."""
        array = np.asarray(numbers)
        if self.complete and not self.offset and self.demand.exact is None and array.size == self.count():
            self.demand.exact = array.reshape(_shape(self.value))


def _shape(value: ir.Value | None) -> tuple[int, ...]:
    return value.shape.numpy() if value is not None and value.shape is not None and value.shape.is_static() else ()


class Model:
    """The model whose values are followed, with its functions and the node that owns each subgraph."""

    def __init__(self, model: ir.Model) -> None:
        """Index all subgraphs and function calls."""
        self.functions = model.functions
        self.owners: dict[ir.Graph, ir.Node] = {}
        self.arguments: dict[ir.Value, ir.Value] = {}
        parts: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
        for part in parts:
            for node in part.all_nodes():
                for attribute in node.attributes.values():
                    if attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref():
                        self.owners[attribute.as_graph()] = node
                function = self.functions.get(node.op_identifier())
                for inner, outer in zip(function.inputs if function else (), node.inputs, strict=False):
                    if outer is not None:
                        self.arguments.setdefault(inner, outer)

    def demand(self, value: ir.Value) -> Demand:
        """The combined constraints of all consumers of `value`."""
        demand = Demand()
        pending: list[tuple[ir.Value, int, bool]] = [(value, 0, True)]
        seen: set[tuple[ir.Value, int]] = set()
        while pending and len(seen) < _MAX_USES:
            current, offset, complete = pending.pop()
            if (current, offset) in seen:
                continue
            seen.add((current, offset))
            pending += ((outer, offset, complete) for outer in self._leaves(current))
            for node, position in current.uses():
                pending += self._follow(_Use(node, position, offset, complete, current, demand, self.arguments))
        return demand

    def _follow(self, use: _Use) -> Iterator[tuple[ir.Value, int, bool]]:
        """Record the constraints of this use; yields the values downstream that hold the same numbers."""
        node, position = use.node, use.position
        function = self.functions.get(node.op_identifier())
        if function is not None:
            if position < len(function.inputs):
                yield function.inputs[position], use.offset, use.complete
            return
        if (rule := _RULES.get(node.op_type)) is not None:
            rule(use)
        if node.op_type in _UNCHANGED and (position == 0 or node.op_type == "Concat"):
            complete = use.complete and node.op_type in ("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze")
            yield from ((output, use.offset, complete) for output in node.outputs)
        elif node.op_type == "Cast":
            integer = ir.DataType(node.attributes.get_int("to", 1) or 1).is_integer()  # a function may leave it open
            use.demand.mask |= not integer and use.value.dtype is not None and use.value.dtype.is_integer()
            if integer:
                yield node.outputs[0], use.offset, use.complete
        elif node.op_type in ("Add", "Sub"):
            other = use.constant(1 - position)
            if (
                other is not None
                and other.size == 1
                and other.dtype.kind in "iu"
                and (node.op_type, position) != ("Sub", 1)
            ):
                step = int(other.reshape(-1)[0]) * (1 if node.op_type == "Add" else -1)
                yield node.outputs[0], use.offset + step, use.complete
        elif node.op_type in ("Loop", "Scan"):
            body = node.attributes["body"].as_graph()
            if position < len(body.inputs) and (node.op_type == "Scan" or position >= 2):
                yield body.inputs[position], use.offset, False

    def _leaves(self, value: ir.Value) -> Iterator[ir.Value]:
        """The outputs of a control flow node that `value`, an output of its subgraph, becomes."""
        if not value.is_graph_output() or value.graph not in self.owners:
            return
        graph = value.graph
        assert isinstance(graph, ir.Graph)
        node = self.owners[graph]
        skipped = 1 if node.op_type == "Loop" else 0  # its condition
        for index, output in enumerate(graph.outputs):
            if output is value and 0 <= index - skipped < len(node.outputs):
                yield node.outputs[index - skipped]


def _at(position: int, rule: Callable[[_Use], None]) -> Callable[[_Use], None]:
    def only(use: _Use) -> None:
        if use.position == position:
            rule(use)

    return only


def _gather(use: _Use) -> None:
    shape, axis = use.shape(), use.node.attributes.get_int("axis", 0)
    if use.position == 1 and shape:
        use.index((shape[axis],))


def _gather_nd(use: _Use) -> None:
    if use.position != 1 or not use.shape():
        return
    batch = use.node.attributes.get_int("batch_dims", 0)
    depth = _shape(use.value)[-1:] or (1,)
    use.index(use.shape()[batch : batch + depth[0]])


def _one_hot(use: _Use) -> None:
    depth = use.constant(1)
    if use.position == 0 and depth is not None:
        use.index((int(depth.reshape(-1)[0]),))
    elif use.position == 1:
        use.demand.within(2, 8)


def _lengths(use: _Use) -> None:
    """Sequence lengths of a recurrent operator, whose time axis is 0."""
    if use.position == 4:
        use.index(tuple(extent + 1 for extent in use.shape()[:1]), 1)


def _reverse(use: _Use) -> None:
    axis = use.node.attributes.get_int("time_axis", 0)
    if use.position == 1:
        use.index(tuple(extent + 1 for extent in use.shape()[axis : axis + 1]), 1)


def _reshape(use: _Use) -> None:
    if use.position != 1:
        return
    declared, shape, count = _shape(use.node.outputs[0]), use.shape(), use.count()
    if len(declared) == count and declared:
        use.exactly(declared)
    use.exactly(shape if len(shape) == count else [-1, *[1] * (count - 1)])
    use.demand.within(1, 2)


def _expand(use: _Use) -> None:
    if use.position == 1:
        shape, count = use.shape(), use.count()
        use.exactly([*[1] * (count - len(shape)), *shape][-count:] if count else [])
        use.demand.within(1, 2)


def _slice(use: _Use) -> None:
    shape, count = use.shape(), use.count()
    axes = use.constant(3)
    chosen = range(count) if axes is None else [int(axis) for axis in axes.reshape(-1)]
    if use.position == 1:
        use.demand.within(0, 1)
    elif use.position == 2 and shape:
        ends = [shape[axis] for axis in chosen if axis < len(shape)]
        use.exactly(ends)
        use.demand.within(1, max(min(ends, default=1), 1) + 1)
    elif use.position == 3:
        use.exactly(np.arange(count))
    elif use.position == 4:
        use.demand.within(1, 2)


def _split(use: _Use) -> None:
    shape, axis, count = use.shape(), use.node.attributes.get_int("axis", 0), use.count()
    if use.position == 1 and shape and count:
        part = shape[axis] // count
        use.exactly([*[part] * (count - 1), shape[axis] - part * (count - 1)])


def _top_k(use: _Use) -> None:
    shape, axis = use.shape(), use.node.attributes.get_int("axis", -1)
    if use.position == 1:
        use.demand.within(1, (shape[axis] if shape else 1) + 1)


def _range(use: _Use) -> None:
    use.exactly([(0, 5, 1)[use.position]] if use.position < 3 else [])


def _axes(use: _Use) -> None:
    if use.position != 1:
        return
    if use.node.op_type == "Squeeze":
        use.exactly([axis for axis, extent in enumerate(use.shape()) if extent == 1][: use.count()])
    use.exactly(np.arange(use.count()))
    use.demand.within(0, max(len(use.shape()), 1))


def _resize(use: _Use) -> None:
    if use.position == len(use.node.inputs) - 1 and use.position == 3:
        use.exactly(use.shape())
    elif use.node.inputs[use.position] is use.value and use.position in (1, 2) and use.count() == len(use.shape()):
        use.exactly([1.0] * min(2, use.count()) + [2.0] * max(use.count() - 2, 0))


def _equal(use: _Use) -> None:
    use.demand.mask |= use.value.dtype != ir.DataType.STRING
    other = use.constant(1 - use.position) if len(use.node.inputs) == 2 else None
    if other is not None and use.node.op_type == "Equal" and other.dtype.kind in "iuf":
        numbers = [number - use.offset for number in np.unique(other).tolist()]
        use.demand.choices += numbers[:_MAX_CHOICES]


def _embed(use: _Use) -> None:
    table = {0: 2, 1: 4}.get(use.position)
    if table is not None:
        use.index(use.shape(table)[:1])


def _unpool(use: _Use) -> None:
    if use.position == 1 and _shape(use.node.outputs[0]):
        use.index((int(np.prod(_shape(use.node.outputs[0])[2:])),))


def _power(use: _Use) -> None:
    exponent = use.constant(1)
    use.demand.positive |= use.position == 0 and (exponent is None or bool((exponent != np.round(exponent)).any()))
    if use.position == 1 and use.value.dtype is not None and use.value.dtype.is_integer():
        use.demand.within(0, 4)


def _probability(use: _Use) -> None:
    use.demand.unit = use.demand.positive = True


def _suppression(use: _Use) -> None:
    if use.position == 2:
        use.demand.within(1 - use.offset, 8 - use.offset)
    elif use.position in (3, 4):
        _probability(use)


def _regions(use: _Use) -> None:
    """RoiAlign: regions of half the image with their corners in order, and the batch index of each."""
    shape, count = use.shape(), use.count()
    if use.position == 2:
        use.index(shape[:1])
    elif use.position == 1 and len(shape) == 4:
        size = np.array([shape[3], shape[2]]) / (2 * use.node.attributes.get_float("spatial_scale", 1.0))
        corner = (np.arange(count // 4) % 5 / 5)[:, None] * size
        use.exactly(np.concatenate([corner, corner + size], 1))


def _columns(use: _Use) -> None:
    """Col2Im: blocks of one element, and an image of one row that holds all of them."""
    sizes = np.ones(use.count())
    if use.position == 1 and len(use.shape()) == 3:
        sizes[-1:] = use.shape()[2]
    if use.position in (1, 2):
        use.exactly(sizes)


def _grid(use: _Use) -> None:
    """AffineGrid: the size of a batch of small images."""
    if use.position == 1 and use.shape():
        use.exactly([use.shape()[0], *range(1, use.count())])


def _divisor(use: _Use) -> None:
    if use.position == 1 and use.value.dtype is not None and use.value.dtype.is_integer():
        use.demand.within(1 - use.offset)


def _set(name: str, position: int = 0) -> Callable[[_Use], None]:
    return _at(position, lambda use: setattr(use.demand, name, True))


def _between(position: int, low: int, high: int) -> Callable[[_Use], None]:
    return _at(position, lambda use: use.demand.within(low - use.offset, high - use.offset))


_RULES: dict[str, Callable[[_Use], None]] = {
    "Gather": _gather, "GatherElements": _gather, "ScatterElements": _gather, "Scatter": _gather,
    "ArrayFeatureExtractor": _at(1, lambda use: use.index(use.shape()[-1:])),
    "AffineGrid": _grid, "Col2Im": _columns, "RoiAlign": _regions, "SequenceAt": _at(1, lambda use: use.index((1,))),
    **dict.fromkeys(("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"),
                    _at(1, lambda use: use.index(use.shape()[1:2]))),
    "GatherND": _gather_nd, "ScatterND": _gather_nd, "OneHot": _one_hot, "ReverseSequence": _reverse,
    "RNN": _lengths, "LSTM": _lengths, "GRU": _lengths, "DynamicQuantizeLSTM": _lengths,
    "Reshape": _reshape, "Expand": _expand, "Slice": _slice, "Split": _split, "TopK": _top_k, "Range": _range,
    "Squeeze": _axes, "Unsqueeze": _axes, "CumSum": _axes, "ReduceSum": _axes, "ReduceMean": _axes,
    "ReduceMax": _axes, "ReduceMin": _axes, "ReduceProd": _axes, "ReduceL1": _axes, "ReduceL2": _axes,
    "ReduceLogSum": _axes, "ReduceLogSumExp": _axes, "ReduceSumSquare": _axes,
    "Resize": _resize, "Upsample": _resize, "EmbedLayerNormalization": _embed, "MaxUnpool": _unpool,
    "Tile": _between(1, 1, 3), "Pad": _between(1, 0, 2), "ConstantOfShape": _between(0, 1, 4),
    "CenterCropPad": _between(1, 1, 5), "Trilu": _between(1, 0, 2), "Loop": _between(0, 1, 5),
    "BitShift": _between(1, 0, 8), "NonMaxSuppression": _suppression,
    "Div": _divisor, "Mod": _divisor, **dict.fromkeys(_COMPARISONS, _equal),
    "Log": _set("positive"), "Sqrt": _set("positive"), "Pow": _power, "Bernoulli": _probability,
    "BatchNormalization": _set("positive", 4), "QuantizeLinear": _set("positive", 1),
    "DequantizeLinear": _set("positive", 1), "Asin": _set("unit"), "Acos": _set("unit"), "Atanh": _set("unit"),
    "Acosh": _set("above_one"),
}  # fmt: skip
