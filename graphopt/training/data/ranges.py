"""Which integers an input of a step model may hold: labels below the number of classes, indices of rows.

    loss = SoftmaxCrossEntropyLoss(scores[32, 10], labels)   labels: 0 to 9
    rows = Gather(table[5000, 64], tokens)                   tokens: -5000 to 4999

ONNX Runtime reads or crashes outside of a table where an index does, and a loss makes NaN of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt.graph.constness import is_input
from graphopt.graph.state import LABELS

LOSSES = frozenset({"SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss"})
"""Operators whose second input are labels; the classes are axis 1 of the first."""

_MOVES = frozenset({"Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "Transpose"})
_NAMES = ("labels", "label", "target", "targets", "y")


@dataclass(frozen=True, slots=True)
class Range:
    """Integers from `low` to `high`, both included, and perhaps one that is ignored; `why` says what sets them."""

    low: int
    high: int
    ignored: int | None
    why: str

    def first_outside(self, array: NDArray[Any]) -> int | None:
        """The flat place of the first element that is not in the range; None if all are."""
        outside = (array < self.low) | (array > self.high)
        if self.ignored is not None:
            outside &= array != self.ignored
        return int(outside.argmax()) if outside.any() else None


def integer_ranges(model: ir.Model) -> dict[str, Range]:
    """The range of every integer input that labels or selects; the narrowest where several operators read one."""
    found: dict[str, Range] = {}
    for node in model.graph:
        read = _reader(node)
        if read is None:
            continue
        source, limits = read
        if source is not None and _narrower(limits, found.get(str(source.name))):
            found[str(source.name)] = limits
    return found


def labels_input(model: ir.Model) -> str | None:
    """The input that holds the labels or targets: the one that the pass `loss` added.

    Of a step model that was made elsewhere, what a loss reads beside the scores, or an input with such a name.
    """
    named = model.graph.metadata_props.get(LABELS)
    if any(value.name == named for value in model.graph.inputs):
        return named
    for node in model.graph:
        if node.op_type in LOSSES and (source := _source(node.inputs[1])) is not None:
            return str(source.name)
    names = [str(value.name) for value in model.graph.inputs if is_input(value)]
    return next((name for name in _NAMES if name in names), None)


def _reader(node: ir.Node) -> tuple[ir.Value | None, Range] | None:
    if node.op_type in LOSSES:
        classes = _extent(node.inputs[0], 1)
        ignored = node.attributes.get_int("ignore_index", None)
        limits = Range(0, (classes or 0) - 1, ignored, f"the model has {classes} classes")
    elif node.op_type == "Gather":
        classes = _extent(node.inputs[0], node.attributes.get_int("axis", 0))
        table = node.inputs[0].name if node.inputs[0] is not None else ""
        limits = Range(-(classes or 0), (classes or 0) - 1, None, f"{table} has {classes} rows")
    else:
        return None
    return None if not classes else (_source(node.inputs[1]), limits)


def _extent(value: ir.Value | None, axis: int) -> int | None:
    if value is None or value.shape is None or not -len(value.shape) <= axis < len(value.shape):
        return None
    extent = value.shape[axis]
    return extent if isinstance(extent, int) else None


def _source(value: ir.Value | None) -> ir.Value | None:
    """The input of the model whose elements `value` holds."""
    while value is not None and (node := value.producer()) is not None:
        value = node.inputs[0] if node.op_type in _MOVES else None
    return value if value is not None and is_input(value) else None


def _narrower(new: Range, old: Range | None) -> bool:
    width: Callable[[Range], int] = lambda each: each.high - each.low  # noqa: E731
    return old is None or width(new) < width(old)


def is_integer(array: NDArray[Any]) -> bool:
    """Whether the elements are integers."""
    return np.issubdtype(array.dtype, np.integer)
