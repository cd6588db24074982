"""Which channels are one: a label for each place of each axis, equal where taking one out means taking out the other.

    y = Relu(Conv(x, w, b))   z = Concat(y, u)   t = Conv(z, v)

Output k of w, element k of b, channel k of y and of z, and input k of v have one label. Taking a label out of the model
is the same as nobody reading its channel: the weights that read it are zero. Labels are fixed where that does not hold:
where a user sees the channel, or where a node mixes channels without weights (a Softmax, a mean over them).

Labels of single places follow Concat, Split and Flatten, where classes of whole axes (`passes.sparse.channels`) end.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt.passes.prune.layers import numbers

Labels = NDArray[np.int64]
Dims = Callable[[ir.Value | None], tuple[int, ...] | None]


@dataclass(frozen=True, slots=True, eq=False)
class Operand:
    """A constant input of a node that has labels along `axis`.

    `produces` where they are a layer's outputs, `reads` where they are its inputs; neither for a bias or a scale.
    """

    node: ir.Node
    index: int
    axis: int
    labels: Labels
    produces: bool = False
    reads: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Extents:
    """Extents that are written in a node and count labels: what is left of `labels` replaces them.

    `kind` is `reshape` (element `place` of a constant target), `split` (part `place`) or `group` (of a convolution).
    """

    node: ir.Node
    kind: str
    place: int
    labels: Labels


@dataclass(slots=True)
class Axes:
    """The labels of a graph. `root` maps a label to the least one that it is united with; `fixed` is per label."""

    operands: list[Operand]
    extents: list[Extents]
    values: dict[ir.Value, list[Labels | None]]
    root: Labels
    fixed: NDArray[np.bool_]
    seen: NDArray[np.bool_]
    """Per label: whether a user sees the channel, in an output of the model."""

    def outputs(self, node: ir.Node, index: int = 1) -> Labels | None:
        """Roots of the outputs of the layer `node`, None where it is not followed."""
        return self._of(node, index, "produces")

    def inputs(self, node: ir.Node, index: int = 1) -> Labels | None:
        """Roots of the inputs of the layer `node`, None where it is not followed."""
        return self._of(node, index, "reads")

    def together(self) -> Iterator[Labels]:
        """Roots of every axis that must keep a channel: of weights, and of the parts of Splits."""
        yield from (self.root[each.labels] for each in self.operands)
        yield from (self.root[each.labels] for each in self.extents)

    def alone(self, node: ir.Node, labels: Labels) -> bool:
        """Whether no other layer than `node` produces channels with these roots."""
        others = [each for each in self.operands if each.produces and each.node is not node]
        return not any(np.isin(self.root[each.labels], labels).any() for each in others)

    def _of(self, node: ir.Node, index: int, what: str) -> Labels | None:
        for operand in self.operands:
            if operand.node is node and operand.index == index and getattr(operand, what):
                return self.root[operand.labels]
        return None


@dataclass(slots=True)
class Finder:
    """Collects labels while rules walk over the nodes."""

    dims: Dims
    operands: list[Operand] = field(default_factory=list)
    extents: list[Extents] = field(default_factory=list)
    values: dict[ir.Value, list[Labels | None]] = field(default_factory=dict)
    parent: list[int] = field(default_factory=list)
    _fixed: list[Labels] = field(default_factory=list)
    _seen: list[Labels] = field(default_factory=list)

    def fresh(self, extent: int) -> Labels | None:
        """Labels that nothing has yet; None for a single place, of which nothing could be taken out."""
        if extent < 2:
            return None
        start = len(self.parent)
        self.parent.extend(range(start, start + extent))
        return np.arange(start, start + extent)

    def of(self, value: ir.Value | None) -> list[Labels | None]:
        """The labels of each axis of a value; [] of a constant or a value of unknown rank."""
        if value is None:
            return []
        shape = self.dims(value) or ()
        return self.values.get(value) or [None] * len(shape)

    def give(self, value: ir.Value, labels: Sequence[Labels | None]) -> None:
        """Set the labels of a result."""
        self.values[value] = list(labels)

    def fix(self, *labels: Labels | None, seen: bool = False) -> None:
        """Say that these cannot be taken out."""
        for each in labels:
            if each is not None:
                self._fixed.append(each)
                if seen:
                    self._seen.append(each)

    def fix_all(self, *values: ir.Value | None, seen: bool = False) -> None:
        """Fix every axis of the values."""
        for value in values:
            self.fix(*self.of(value), seen=seen)

    def unite(self, many: Sequence[Labels | None]) -> Labels | None:
        """One label for each place, of axes of equal extent; if one of them has none, the others are fixed."""
        known = [each for each in many if each is not None]
        if not known:
            return None
        if len(known) < len(many):
            self.fix(*known)
        for other in known[1:]:
            for a, b in zip(known[0].tolist(), other.tolist(), strict=True):
                x, y = self._root(a), self._root(b)
                if x != y:
                    self.parent[max(x, y)] = min(x, y)
        return known[0]

    def _root(self, label: int) -> int:
        while self.parent[label] != label:
            self.parent[label] = self.parent[self.parent[label]]
            label = self.parent[label]
        return label

    def result(self) -> Axes:
        """What was found."""
        root = np.array(self.parent, np.int64)
        while not np.array_equal(root, root[root]):
            root = root[root]
        marks = []
        for chosen in (self._fixed, self._seen):
            mark = np.zeros(len(root), bool)
            for each in chosen:
                mark[root[each]] = True
            marks.append(mark[root])
        return Axes(self.operands, self.extents, self.values, root, marks[0], marks[1])


Rule = Callable[[Finder, ir.Node], bool]
"""Gives the results of a node their labels; False where it does not know the node, whose values are then fixed."""


def find(graph: ir.Graph, dims: Dims, rules: Mapping[str, Rule]) -> Axes:
    """The labels of the main graph. `dims` knows static shapes, `rules` the operators."""
    finder = Finder(dims)
    for node in graph:
        for attribute in node.attributes.values():
            if attribute.type is ir.AttributeType.GRAPH and not attribute.is_ref():
                inner = attribute.as_graph()
                finder.fix_all(*(value for each in inner.all_nodes() for value in each.inputs), *inner.outputs)
        rule = rules.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        known = all(value is None or dims(value) is not None for value in node.inputs if numbers(value) is None)
        known &= all(dims(value) is not None for value in node.outputs if value.uses() or value.is_graph_output())
        if rule is None or not known or not rule(finder, node):
            finder.fix_all(*node.inputs)
    finder.fix_all(*graph.outputs, seen=True)
    return finder.result()


def regroup(
    finder: Finder, labels: Sequence[Labels | None], shape: Sequence[int], out: Sequence[int]
) -> list[Labels | None]:
    """The labels of a reshaped value: axes that stay keep them, those that merge spread them, splits gather them."""
    result: list[Labels | None] = [None] * len(out)
    first = last = 0
    while first < len(shape) or last < len(out):
        ends = _block(shape, out, first, last)
        if ends is None:
            finder.fix(*labels[first:])
            return result
        axes = [axis for axis in range(first, ends[0]) if shape[axis] > 1]
        places = [place for place in range(last, ends[1]) if out[place] > 1]
        first, last = ends
        labelled = [axis for axis in axes if labels[axis] is not None]
        if not labelled:
            continue
        if len(labelled) > 1:
            finder.fix(*(labels[axis] for axis in labelled))
            continue
        own = labels[labelled[0]]
        assert own is not None
        extents = [shape[axis] for axis in axes]
        position = axes.index(labelled[0])
        spread = np.broadcast_to(own.reshape([-1 if i == position else 1 for i in range(len(axes))]), extents)
        full = spread.reshape([out[place] for place in places])
        for number, place in enumerate(places):
            line = np.moveaxis(full, number, 0).reshape(out[place], -1)
            if (line == line[:, :1]).all():
                result[place] = line[:, 0].copy()
                break
        else:
            finder.fix(own)
    return result


def _block(shape: Sequence[int], out: Sequence[int], first: int, last: int) -> tuple[int, int] | None:
    """The end of the shortest run of axes from `first`, and of places from `last`, that hold as many elements."""
    a, b, i, j = 1, 1, first, last
    while True:
        if a == b and (i, j) != (first, last) and a > 1:
            return i, j
        if a <= b and i < len(shape):
            a, i = a * shape[i], i + 1
        elif j < len(out):
            b, j = b * out[j], j + 1
        elif i < len(shape):
            a, i = a * shape[i], i + 1
        else:
            return (i, j) if a == b else None


def joined(finder: Finder, many: Sequence[tuple[Labels | None, int]]) -> Labels | None:
    """The labels of a concatenated axis; parts without labels get some that are fixed."""
    if all(labels is None for labels, _ in many):
        return None
    parts: list[Any] = []
    for labels, extent in many:
        own = labels
        if own is None:
            start = len(finder.parent)
            finder.parent.extend(range(start, start + extent))
            own = np.arange(start, start + extent)
            finder.fix(own)
        parts.append(own)
    return np.concatenate(parts)


def starts(extents: Sequence[int]) -> list[tuple[int, int]]:
    """(start, end) of parts with these extents."""
    ends = list(itertools.accumulate(extents))
    return list(zip([0, *ends[:-1]], ends, strict=True))
