"""Mark what training changes in a loaded model, before anything is folded: parameters and running statistics.

    w: initializer of Conv, Gemm, Gather, ...        ->  w: state, parameter
    mean, var: initializers of BatchNormalization    ->  state, statistic; the node normalizes by the batch
    y = Dropout(x, ratio)                            ->  y = Dropout(x, ratio, true)

An initializer is a parameter by its place: a weight or bias of an operator that has some, a table that is looked up, or
a vector that scales or shifts what earlier parameters computed. Numbers that do none of this (a mask, the mean of the
training images, one over the root of the width) stay constants. A file does not say which of its numbers were trained,
so `Marks` lists both and the user may correct it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import onnx_ir as ir

from graphopt.errors import ModelError
from graphopt.graph import state
from graphopt.graph.constness import is_constant, is_state, stored
from graphopt.graph.edit import is_op

_WEIGHTS: dict[str, tuple[int, ...]] = {
    "BatchNormalization": (1, 2),
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "GRU": (1, 2, 3),
    "Gather": (0,),
    "Gemm": (0, 1, 2),
    "GroupNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LSTM": (1, 2, 3),
    "LayerNormalization": (1, 2),
    "MatMul": (0, 1),
    "PRelu": (1,),
    "RMSNormalization": (1,),
    "RNN": (1, 2, 3),
    "SimplifiedLayerNormalization": (1,),
}
"""Operator -> operands that are parameters wherever they are stored numbers."""

_MOVES = frozenset(
    {
        "Cast",
        "Concat",
        "Expand",
        "Flatten",
        "Identity",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)
"""Operators through which a parameter reaches its place."""


@dataclass(frozen=True, slots=True)
class Marks:
    """What training changes: names of the parameters, of the statistics, and of float initializers that it does not."""

    parameters: tuple[str, ...]
    statistics: tuple[str, ...]
    constants: tuple[str, ...]
    notes: tuple[str, ...]


def mark_for_training(model: ir.Model, freeze: Sequence[str] = ()) -> Marks:
    """Mark the state of a model whose constants are initializers, in place.

    Args:
        freeze: patterns (`encoder.*`) of initializers that training leaves as they are.

    Raises:
        ModelError: no parameter is left, or a pattern matches no initializer.
    """
    names = list(model.graph.initializers)
    for pattern in freeze:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ModelError(f"--freeze {pattern} matches no initializer of the model; graphopt inspect lists them")
    frozen = {name for name in names if any(fnmatchcase(name, pattern) for pattern in freeze)}
    computed: set[ir.Value] = set()  # from parameters
    for node in model.graph:
        for index, value in enumerate(node.inputs):
            for source in _sources(value):
                if source.name not in frozen and _is_weight(node, index, source, computed):
                    state.mark(source, state.Role.PARAMETER)
        if any(value is not None and (value in computed or is_state(value)) for value in node.inputs):
            computed.update(node.outputs)
        elif any(str(value.name) in frozen for value in node.inputs if value is not None):
            computed.update(node.outputs)  # what frozen layers compute is no raw input either
    for node in list(model.graph):
        if is_op(node, "BatchNormalization"):
            _batch_statistics(model, node, frozen)
        elif is_op(node, "Dropout"):
            _dropout(model, node)
    marked = {str(value.name): state.role(value) for value in state.states(model.graph)}
    parameters = tuple(name for name, role in marked.items() if role is state.Role.PARAMETER)
    if not parameters:
        raise ModelError("training would change nothing: the model has no weights, or --freeze matches them all")
    constants = tuple(name for name, value in model.graph.initializers.items() if name not in marked and _floats(value))
    statistics = tuple(name for name in marked if name not in parameters)
    return Marks(parameters, statistics, constants, tuple(_notes(model)))


def _sources(value: ir.Value | None) -> tuple[ir.Value, ...]:
    """The float initializers that `value` is put together from by moves of data alone; none if anything else is in it.

    Exporters reorder the gates of an LSTM so: slices of one weight, concatenated.
    """
    if value is None:
        return ()
    if value.is_initializer():
        return (value,) if _floats(value) else ()
    producer = value.producer()
    if producer is None or producer.domain or producer.op_type not in _MOVES:
        return ()
    parts = producer.inputs if producer.op_type == "Concat" else producer.inputs[:1]
    found = [_sources(part) for part in parts]
    return tuple(dict.fromkeys(source for part in found for source in part)) if all(found) else ()


def _floats(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point() and stored(value) is not None


def _is_weight(node: ir.Node, index: int, source: ir.Value, computed: set[ir.Value]) -> bool:
    if node.domain not in ("", "com.microsoft"):
        return False
    if node.op_type in _WEIGHTS:
        return index in _WEIGHTS[node.op_type] and not (index == 2 and _is_no_bias(node, source))
    others = [value for place, value in enumerate(node.inputs) if place != index and value is not None]
    if not any(value in computed or is_state(value) for value in others):
        return False
    extents = tuple(stored(source).shape.numpy())  # type: ignore[union-attr]
    if is_op(node, "Concat"):  # a class token
        return not _is_fill(source)
    if is_op(node, "Add", "Mul", "Sub", "Div"):
        vector = sum(extent > 1 for extent in extents) == 1
        return vector or (is_op(node, "Add") and math.prod(extents) > 1 and not _is_fill(source))
    return False


def _is_no_bias(node: ir.Node, bias: ir.Value) -> bool:
    """Whether a bias only says that the layer has none: exporters give such layers zeros, one tensor to all of them."""
    tensor = stored(bias)
    if not is_op(node, "Conv", "ConvTranspose", "Gemm") or tensor is None or tensor.numpy().any():
        return False
    made = re.fullmatch(r"val_\d+", str(bias.name)) is not None  # by torch's exporter
    return made or len(bias.uses()) > 1 or any(is_op(use.node, "BatchNormalization") for use in node.outputs[0].uses())


def _is_fill(value: ir.Value) -> bool:
    """Whether all numbers are the same: padding, not something learned."""
    tensor = stored(value)
    array = np.empty(0) if tensor is None else tensor.numpy().reshape(-1)
    return bool(array.size == 0 or (array == array[0]).all())


def _batch_statistics(model: ir.Model, node: ir.Node, frozen: set[str]) -> None:
    """Let a BatchNormalization normalize by its batch, and update its running mean and variance.

    One whose statistics are frozen goes on to normalize by them, as fine-tuning does.
    """
    running = [value for value in node.inputs[3:5] if value is not None and value.is_initializer()]
    if len(running) < 2 or any(str(value.name) in frozen for value in running):
        return
    if any(is_state(value) or len(value.uses()) > 1 for value in running):
        return  # two layers share one statistic: which batch would it be of?
    node.attributes["training_mode"] = ir.AttrInt64("training_mode", 1)
    node.resize_outputs(3)
    for value, output in zip(running, node.outputs[1:], strict=True):
        output.name = f"{value.name}.next"
        output.shape, output.type = value.shape, value.type
        state.mark(value, state.Role.STATISTIC)
        value.metadata_props[state.NEXT] = str(output.name)
        model.graph.outputs.append(output)


def _dropout(model: ir.Model, node: ir.Node) -> None:
    """Let a Dropout drop, as it did before the export."""
    training = node.inputs[2] if len(node.inputs) > 2 else None
    if training is not None and not is_constant(training):
        return
    while len(node.inputs) < 3:
        node.resize_inputs(len(node.inputs) + 1)
    name = f"{node.name}.training"
    flag = ir.Value(name=name, shape=ir.Shape(()), type=ir.TensorType(ir.DataType.BOOL))
    flag.const_value = ir.Tensor(np.array(True), name=name)
    model.graph.register_initializer(flag)
    node.replace_input_with(2, flag)


def _notes(model: ir.Model) -> list[str]:
    nodes = list(model.graph)
    notes = []
    convolutions = [node for node in nodes if is_op(node, "Conv")]
    biased = [node for node in convolutions if len(node.inputs) > 2 and node.inputs[2] is not None]
    normalized = any(node.op_type.endswith("Normalization") for node in nodes)
    if len(biased) > 4 and len(biased) == len(convolutions) and not normalized:
        notes.append(
            "the model has no BatchNormalization: if its export folded one into the convolutions, it is trained as the "
            "affine function that it became"
        )
    return notes
