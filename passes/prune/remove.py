"""Take channels out of a model: smaller weights, biases, scales and shapes, not zeros."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt.graph.edit import Editor
from graphopt.passes.prune.axes import Axes, Extents, Labels
from graphopt.passes.prune.layers import Layer, numbers
from graphopt.passes.prune.masks import count_of, weakest

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Wish:
    """A layer whose channels may go: its labels, the score of each of its channels, the share that is to go."""

    layer: Layer
    labels: Labels
    scores: NDArray[np.float64]
    sparsity: float


def choose(axes: Axes, wishes: Sequence[Wish]) -> Mask:
    """Which labels go, per label.

    Layers that share labels (over residual additions) are one family: a channel of theirs is worth the sum of its
    shares in each, and the family loses the smallest share that any of them wishes. No axis loses its best channel.
    """
    gone = np.zeros(len(axes.root), bool)
    worths: dict[int, float] = {}
    for family in _families(wishes):
        worth: dict[int, float] = {}
        for wish in family:
            total = float(wish.scores.sum()) or 1.0
            for label, score in zip(wish.labels.tolist(), wish.scores.tolist(), strict=True):
                worth[label] = worth.get(label, 0.0) + score / total
        roots = np.array([label for label in sorted(worth) if not axes.fixed[label]], np.int64)
        if not len(roots):
            continue
        values = np.array([worth[label] for label in roots.tolist()])
        chosen = roots[weakest(values, count_of(min(wish.sparsity for wish in family), len(roots)))]
        gone[chosen] = True
        worths |= worth
    for labels in axes.together():
        if gone[labels].all():
            gone[max(labels.tolist(), key=lambda label: worths.get(label, 0.0))] = False
    return gone[axes.root]


def _families(wishes: Sequence[Wish]) -> list[list[Wish]]:
    """Wishes grouped so that those which share a label are together."""
    families: list[tuple[set[int], list[Wish]]] = []
    for wish in wishes:
        labels, members = set(wish.labels.tolist()), [wish]
        apart = []
        for others, family in families:
            if labels & others:
                labels |= others
                members = family + members
            else:
                apart.append((others, family))
        families = [*apart, (labels, members)]
    return [family for _, family in families]


def blank(editor: Editor, axes: Axes, gone: Mask) -> None:
    """Zero what produces and what reads the channels that are `gone`: the model that `remove` must agree with."""
    _rewrite(editor, axes, gone, lambda array, axis, lost: _zeroed(array, axis, lost), only_weights=True)


def remove(editor: Editor, axes: Axes, gone: Mask) -> None:
    """Take the channels that are `gone` out of every constant, shape, group count and split.

    w [64, 3, 3, 3], b [64]  ->  w [40, 3, 3, 3], b [40]     and so on in all that carries or reads them
    """
    _rewrite(editor, axes, gone, lambda array, axis, lost: np.compress(~lost, array, axis=axis), only_weights=False)
    _resize(editor, axes.extents, gone)
    for value, labels in axes.values.items():
        if value.shape is None:
            continue
        extents = list(value.shape)
        for axis, own in enumerate(labels):
            if own is not None and gone[own].any() and isinstance(extents[axis], int):
                extents[axis] = int(np.count_nonzero(~gone[own]))
        value.shape = ir.Shape(extents)


def _zeroed(array: NDArray[Any], axis: int, lost: Mask) -> NDArray[Any]:
    copy = array.copy()
    np.moveaxis(copy, axis, 0)[lost] = 0
    return copy


def _rewrite(editor: Editor, axes: Axes, gone: Mask, change: Any, *, only_weights: bool) -> None:
    """Apply `change(array, axis, lost)` to every constant that carries labels; readers of equal changes share one."""
    wanted: dict[tuple[ir.Node, int], dict[int, Mask]] = {}
    for operand in axes.operands:
        lost = gone[operand.labels]
        depthwise = operand.index == 1 and operand.node.op_type == "Conv"
        if lost.any() and (not only_weights or operand.produces or operand.reads or depthwise):
            wanted.setdefault((operand.node, operand.index), {})[operand.axis] = lost
    made: dict[tuple[Any, ...], ir.Value] = {}
    names: dict[ir.Value, str] = {}
    for (node, index), lines in wanted.items():
        old = node.inputs[index]
        assert old is not None
        key = (id(old), *((axis, lost.tobytes()) for axis, lost in sorted(lines.items())))
        if key not in made:
            array = numbers(old)
            assert array is not None
            for axis, lost in lines.items():
                array = change(array, axis, lost)
            made[key] = editor.constant(array, str(old.name))
            names[made[key]] = str(old.name)
        node.replace_input_with(index, made[key])
        _forget(editor, old)
    _rename(editor, names)
    editor.modified |= bool(wanted)


def _rename(editor: Editor, names: Mapping[ir.Value, str]) -> None:
    """Give new constants the names that the user's had, where those are gone."""
    taken = {value.name for node in editor.graph for value in node.outputs} | set(editor.graph.initializers)
    taken |= {value.name for value in editor.graph.inputs}
    for value, name in names.items():
        if name not in taken:
            value.name = name
            taken.add(name)


def _forget(editor: Editor, value: ir.Value) -> None:
    """Drop a constant that nothing reads any more, and what computed it."""
    while not value.uses() and not value.is_graph_output() and not value.is_graph_input():
        producer = value.producer()
        if producer is None:
            editor.graph.initializers.pop(str(value.name), None)
            return
        inputs = [each for each in producer.inputs if each is not None]
        editor.graph.remove(producer, safe=True)
        for each in inputs[1:]:
            _forget(editor, each)
        if not inputs:
            return
        value = inputs[0]


def _resize(editor: Editor, extents: Sequence[Extents], gone: Mask) -> None:
    """Write what is left of the labels into the targets of Reshapes, the parts of Splits and group counts."""
    by_node: dict[ir.Node, list[Extents]] = {}
    for each in extents:
        by_node.setdefault(each.node, []).append(each)
    for node, many in by_node.items():
        if not any(gone[each.labels].any() for each in many):
            continue
        left = {each.place: int(np.count_nonzero(~gone[each.labels])) for each in many}
        if many[0].kind == "group":
            node.attributes["group"] = ir.AttrInt64("group", left[0])
        elif many[0].kind == "reshape":
            _set_input(editor, node, 1, left)
        else:
            _set_split(editor, node, [left[place] for place in range(len(node.outputs))])


def _set_input(editor: Editor, node: ir.Node, index: int, places: Mapping[int, int]) -> None:
    old = node.inputs[index]
    array = numbers(old)
    assert old is not None
    assert array is not None
    sizes = array.copy()
    for place, extent in places.items():
        sizes[place] = extent
    value = editor.constant(sizes, str(old.name))
    node.replace_input_with(index, value)
    _forget(editor, old)
    _rename(editor, {value: str(old.name)})


def _set_split(editor: Editor, node: ir.Node, parts: Sequence[int]) -> None:
    if editor.model.opset_imports.get("", 1) < 13:
        node.attributes["split"] = ir.AttrInt64s("split", list(parts))
        return
    node.attributes.pop("num_outputs", None)
    old = node.inputs[1] if len(node.inputs) > 1 else None
    value = editor.constant(np.array(parts, np.int64), f"{node.name}.split" if old is None else str(old.name))
    node.resize_inputs(2)
    node.replace_input_with(1, value)
    if old is not None:
        _forget(editor, old)
