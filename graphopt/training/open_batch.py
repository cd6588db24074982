"""Models that were exported for one batch are trained with another: the batch axis is opened, and runs confirm it.

x: float[1, 3, 32, 32]          ->   x: float[batch, 3, 32, 32]
y = Reshape(h, [1, 400])        ->   y = Reshape(h, [-1, 400])
z = Reshape(h, [1, 8, -1])      ->   z = Reshape(h, [0, 8, -1])
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from graphopt.errors import GraphoptError, ModelError
from graphopt.frontend.fold import lift_constants
from graphopt.graph.constness import is_input, numbers_of
from graphopt.graph.edit import is_op
from graphopt.training.engine import Array
from graphopt.verify.oracle import compare, random_inputs, run_onnxruntime

_RUNS = 3
"""Batches that are run one by one, and together."""
_SYMBOL = "batch"


def open_batch(model: ir.Model) -> ir.Model:
    """A copy of `model` whose inputs leave axis 0 open.

    Raises:
        ModelError: the inputs have no batch in common, or several batches at once do not give what each gives alone.
    """
    fixed = fixed_batch(model)
    if fixed is None:
        raise ModelError("its inputs have no batch in common")
    copy = model.clone()
    lift_constants(copy)
    graph = copy.graph
    for value in filter(is_input, graph.inputs):
        assert value.shape is not None
        value.shape = ir.Shape([_SYMBOL, *value.shape[1:]])
    for node in graph:
        for value in node.outputs:
            value.shape = None
        if is_op(node, "Reshape"):
            _open_reshape(graph, node, fixed)
    try:
        _confirm(model, copy)
    except GraphoptError as error:
        raise ModelError(f"its layers depend on the batch: {error}") from error
    return copy


def fixed_batch(model: ir.Model) -> int | None:
    """The extent of axis 0 that all inputs have; None where one is open, or they differ."""
    extents = {
        value.shape[0] if value.shape is not None and len(value.shape) else None
        for value in model.graph.inputs
        if is_input(value)
    }
    first = extents.pop() if len(extents) == 1 else None
    return first if isinstance(first, int) else None


def _open_reshape(graph: ir.Graph, node: ir.Node, fixed: int) -> None:
    """Let the target shape follow the batch, if its first extent is a multiple of it."""
    numbers = numbers_of(node.inputs[1])
    if numbers is None or not numbers.size:
        return
    first, *rest = numbers.reshape(-1).tolist()
    if first < 1 or (first != fixed if fixed == 1 else first % fixed) or 0 in rest:
        return
    if -1 in rest and first != fixed:
        return
    target = np.array([0 if -1 in rest else -1, *rest], np.int64)
    name = f"{node.outputs[0].name}.shape"
    while name in graph.initializers:
        name += "_"
    value = ir.Value(name=name, shape=ir.Shape(target.shape), type=ir.TensorType(ir.DataType.INT64))
    value.const_value = ir.tensor(target, name=name)
    graph.register_initializer(value)
    node.replace_input_with(1, value)
    node.attributes.pop("allowzero", None)


def _confirm(model: ir.Model, opened: ir.Model) -> None:
    """Raises GraphoptError unless several batches at once give what they give one by one."""
    pieces = [random_inputs(model, seed) for seed in range(_RUNS)]
    alone = [run_onnxruntime(model, piece) for piece in pieces]
    together = run_onnxruntime(opened, _stacked(pieces))
    if any(not array.ndim for array in together.values()):
        raise GraphoptError("an output has no batch")
    if mismatches := compare(_stacked(alone), together):
        raise GraphoptError(mismatches[0].message)


def _stacked(pieces: list[dict[str, Array]]) -> Mapping[str, Array]:
    return {name: np.concatenate([np.atleast_1d(piece[name]) for piece in pieces]) for name in pieces[0]}
