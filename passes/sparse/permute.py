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
    for (node, index), changes in constants.items():
        old = node.inputs[index]
        assert is_constant(old)
        hint = f"{str(old.name).removesuffix('.permuted')}.permuted"
        node.replace_input_with(index, editor.constant(_permuted(constant_array(old), changes), hint))
        if not old.uses() and not old.is_graph_output() and not old.is_graph_input():
            editor.graph.initializers.pop(str(old.name), None)
    for value in dict.fromkeys(value for channels, _ in moves for value in channels.values):
        if not str(value.name).endswith(".permuted"):
            value.name = editor.fresh(f"{value.name}.permuted")  # what had the old name is in another order
    editor.modified = editor.modified or bool(moves)


def _permuted(array: NDArray[np.generic], changes: Sequence[tuple[Operand, NDArray[np.int64]]]) -> NDArray[np.generic]:
    """`array` with other places along some axes; changes of the same axes become one copy."""
    sources: dict[tuple[tuple[int, ...], tuple[int, ...]], NDArray[np.int64]] = {}
    for operand, places in changes:
        key = operand.view, operand.axes
        sources[key] = sources[key][places] if key in sources else places
    shape = array.shape
    for (view, axes), places in sources.items():
        front = range(len(axes))
        moved = np.moveaxis(array.reshape(view), axes, front)
        flat = moved.reshape(len(places), *moved.shape[len(axes) :])[places]
        array = np.moveaxis(flat.reshape(moved.shape), front, axes).reshape(shape)
    return array
