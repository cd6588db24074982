"""Permute channels offline, so that outputs that need the same inputs are neighbours: no Gather puts them back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt.graph.constness import constant_array, is_constant
from graphopt.graph.edit import Editor
from graphopt.passes.sparse.carriers import Channels, Operand

Move = tuple[Channels, NDArray[np.int64]]
"""A class, and the order that its channels get."""


def permute(editor: Editor, moves: Sequence[Move]) -> None:
    """Put the channels of some classes into another order, in all constants that carry them.

    w1[k, order], b1[order], w2[order, n]   instead of   w1, b1, w2   in   MatMul(Relu(Add(MatMul(x, w1), b1)), w2)
    """
    constants: dict[tuple[ir.Node, int], list[tuple[Operand, NDArray[np.int64]]]] = {}
    for channels, order in moves:
        for operand in channels.operands:
            constants.setdefault((operand.node, operand.index), []).append((operand, operand.along(order)))
    made: dict[tuple[object, ...], ir.Value] = {}
    for (node, index), changes in constants.items():
        old = node.inputs[index]
        assert is_constant(old)
        sources = _composed(changes)
        key = old, *((view, axes, places.tobytes()) for (view, axes), places in sources.items())
        if key not in made:  # layers that share a constant share what becomes of it
            hint = f"{str(old.name).removesuffix('.permuted')}.permuted"
            made[key] = editor.constant(_permuted(constant_array(old), sources), hint)
        node.replace_input_with(index, made[key])
        if not old.uses() and not old.is_graph_output() and not old.is_graph_input():
            editor.graph.initializers.pop(str(old.name), None)
    for value in dict.fromkeys(value for channels, _ in moves for value in channels.values):
        if not str(value.name).endswith(".permuted"):
            value.name = editor.fresh(f"{value.name}.permuted")  # what had the old name is in another order
    editor.modified = editor.modified or bool(moves)


Sources = dict[tuple[tuple[int, ...], tuple[int, ...]], NDArray[np.int64]]
"""By view and axes of a constant: for each place along the axes, the place that what stands there comes from."""


def _composed(changes: Sequence[tuple[Operand, NDArray[np.int64]]]) -> Sources:
    """Changes of the same axes, by classes that have no place in common, as one."""
    sources: Sources = {}
    for operand, places in changes:
        key = operand.view, operand.axes
        sources[key] = sources[key][places] if key in sources else places
    return sources


def _permuted(array: NDArray[np.generic], sources: Sources) -> NDArray[np.generic]:
    """`array` with other places along some axes."""
    shape = array.shape
    for (view, axes), places in sources.items():
        front = range(len(axes))
        moved = np.moveaxis(array.reshape(view), axes, front)
        flat = moved.reshape(len(places), *moved.shape[len(axes) :])[places]
        array = np.moveaxis(flat.reshape(moved.shape), front, axes).reshape(shape)
    return array
