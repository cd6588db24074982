"""Permute channels offline, so that outputs that need the same inputs are neighbours: no Gather puts them back."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt.graph.constness import constant_array, is_constant
from graphopt.graph.edit import Editor
from graphopt.passes.sparse.channels import Channels, Operand, classes
from graphopt.solve import clustering

WORTH = 0.95
"""A class is permuted if that leaves at most this share of the vectors of outputs that hold a weight."""


def cluster_channels(editor: Editor, lanes: int, max_density: float) -> list[str]:
    """Permute every class of channels whose producers are sparse and come closer together; a sentence for each.

        w1[k, order], b1[order], w2[order, n]   instead of   w1, b1, w2   in   MatMul(Relu(Add(MatMul(x, w1), b1)), w2)

    Args:
        lanes: outputs of a vector.
        max_density: the largest share of vectors that may hold a weight afterwards.
    """
    notes = []
    for channels in classes(editor.graph):
        supports = [_support(operand) for operand in channels.operands if operand.produces]
        sparse = [support for support in supports if support.mean() <= max_density]
        if not sparse or channels.extent < 2 * lanes:
            continue
        problem = clustering.Problem(np.concatenate(sparse, axis=1), lanes)
        given = clustering.as_given(problem)
        solution = clustering.cluster(problem)
        vectors = -(-channels.extent // lanes) * problem.supports.shape[1]
        if solution.columns > min(WORTH * given.columns, max_density * vectors):
            continue
        permute(editor, channels, np.array(solution.order))
        names = ", ".join(dict.fromkeys(str(operand.node.name) for operand in channels.operands if operand.produces))
        notes.append(
            f"outputs of {names} are permuted: {solution.columns / vectors:.1%} of the vectors of {lanes} hold a "
            f"weight, {given.columns / vectors:.1%} did; no order leaves less than {solution.bound / vectors:.1%}"
        )
    return notes


def _support(operand: Operand) -> NDArray[np.bool_]:
    """[channels, all other axes]: where the weights are not zero."""
    weights = np.moveaxis(_array(operand), operand.axis, 0)
    return np.asarray(weights.reshape(len(weights), -1) != 0)


def _array(operand: Operand) -> NDArray[np.generic]:
    value = operand.node.inputs[operand.index]
    assert is_constant(value)
    return constant_array(value)


def permute(editor: Editor, channels: Channels, order: NDArray[np.int64]) -> None:
    """Put the channels of a class into another order, in all constants that carry them."""
    for operand in channels.operands:
        old = operand.node.inputs[operand.index]
        assert old is not None
        permuted = np.take(_array(operand), order, axis=operand.axis)
        operand.node.replace_input_with(operand.index, editor.constant(permuted, f"{old.name}.permuted"))
        if not old.uses() and not old.is_graph_output() and not old.is_graph_input():
            editor.graph.initializers.pop(str(old.name), None)
    for value in dict.fromkeys(value for value, _ in channels.values):
        _rename(editor, value)
    editor.modified = True


def _rename(editor: Editor, value: ir.Value) -> None:
    """A new name: what had the old one is in another order."""
    if not str(value.name).endswith(".permuted"):
        value.name = editor.fresh(f"{value.name}.permuted")
