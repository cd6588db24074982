"""Rounding errors of generated kernels: each node of a compiled model alone, on random input, against float64.

The reference is the operator that the node was rewritten from, with its weights before algorithm selection transformed
them: so the rounding errors of the weight transform count, and a wrong transform is detected.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt import ops
from graphopt.bench.alone import Load, load, run
from graphopt.bench.reference import Doubles, evaluate, relative_error
from graphopt.cost.workload import TILE
from graphopt.graph.analysis import static_type
from graphopt.graph.constness import constant_array, is_constant, numbers_of, stored
from graphopt.lowering.target import Lowered, Target
from graphopt.runtime.devices import library

PRODUCTS = ("Conv", "MatMul", "Gemm")
CONVOLUTIONS = (
    "Conv2dBlocked", "Conv2dFft", "Conv2dIm2col", "Conv2dWinograd", "Conv2dWinogradAxis", "DepthwiseConv2dBlocked",
)  # fmt: skip
DTYPES = ("float16", "float32")

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Subject:
    """A node to run, the ONNX operator that defines its result, and the one non-constant input of each."""

    node: ir.Node
    definition: ir.Node
    x: ir.Value
    place: int

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for nodes that compute the same: operator, attributes, shapes, tile, and identical weights."""
        attributes = tuple((name, str(attribute.value)) for name, attribute in sorted(self.node.attributes.items()))
        constants = tuple(None if value is None else id(stored(value)) for value in self.definition.inputs)
        tile = self.node.metadata_props.get(TILE, "")
        return self.node.op_type, attributes, static_type(self.x), constants, tile


def before_selection(model: ir.Model) -> ir.Model:
    """`model`, rewritten in place by the passes of the default pipeline that come before `select-conv`."""
    from graphopt.passes import DEFAULT
    from graphopt.pipeline.pipeline import Pipeline

    passes = Pipeline.parse(DEFAULT).passes
    chosen = [step.name for step in passes].index("select-conv")
    return Pipeline(passes[:chosen]).run(model).model


def errors(
    model: ir.Model, original: ir.Model, native: Collection[str], target: Target, threads: int
) -> dict[str, float]:
    """Mean |error| over mean |value| by node name, for matrix products and convolutions with constant weights.

    Inputs are standard normal; of a batch the first image is compared. 1.0 where a result is not finite.

    Args:
        model: the compiled model.
        original: the same model from `before_selection`.
        native: names of the nodes that kernels compute; others are left out.
        target: builds the kernels, with the tile recorded in each node.
    """
    subjects = list(_subjects(model, original, native))
    if not subjects:
        return {}
    unique = {subject.key: subject for subject in subjects}
    opsets = model.opset_imports
    lowered = {
        key: target.lower([subject.node], [subject.x], list(subject.node.outputs[:1]), opsets, f"e{number}_")
        for number, (key, subject) in enumerate(unique.items())
    }
    functions = load(target, lowered.values())

    def measure_all() -> dict[tuple[Any, ...], float | None]:
        library.Threads(threads)
        return {key: _error(subject, lowered[key], functions) for key, subject in unique.items()}

    with ThreadPoolExecutor(1) as executor:  # TVM keeps a pool per calling thread: leave the caller's as it is
        errors_by_key = executor.submit(measure_all).result()
    return {str(subject.node.name): error for subject in subjects if (error := errors_by_key[subject.key]) is not None}


def _subjects(model: ir.Model, original: ir.Model, native: Collection[str]) -> Iterator[Subject]:
    convolutions = {str(node.name): node for node in original.graph if node.op_type == "Conv" and not node.domain}
    for node in model.graph:
        if node.name not in native:
            continue
        definition: ir.Node | None = None
        if not node.domain and node.op_type in PRODUCTS:
            definition = node
        elif node.domain == ops.DOMAIN and node.op_type in CONVOLUTIONS:
            definition = _origin(str(node.name), convolutions)
        if definition is None:
            continue
        place, x = _variable(definition), _variable(node)
        if place is None or x is None:
            continue
        value = node.inputs[x]
        if value is not None and (kind := static_type(value)) is not None and kind[0] in DTYPES:
            yield Subject(node, definition, value, place)


def _origin(name: str, convolutions: Mapping[str, ir.Node]) -> ir.Node | None:
    """The Conv that a node was selected for: `select-conv` appends a dot and a word to the Conv's name."""
    while "." in name:
        name = name.rpartition(".")[0]
        if name in convolutions:
            return convolutions[name]
    return None


def _variable(node: ir.Node) -> int | None:
    """Position of the one non-constant input; None if there are several, or if it is no operand."""
    variable = [index for index, value in enumerate(node.inputs) if value is not None and not is_constant(value)]
    operands = 2 if node.op_type in ("MatMul", "Gemm") else 1
    return variable[0] if len(variable) == 1 and variable[0] < operands else None


def _error(subject: Subject, lowered: Lowered, functions: Load) -> float | None:
    kind = static_type(subject.x)
    assert kind is not None
    x = np.random.default_rng(0).standard_normal(kind[1], dtype=np.float32).astype(kind[0])
    expected = _exact(subject, x)
    if expected is None or not np.isfinite(expected).all() or not expected.any():
        return None
    actual = run(lowered, functions, x)
    if actual.ndim > expected.ndim:
        actual = planar(actual, expected.shape[1])
    actual = actual[: len(expected)]
    if actual.shape != expected.shape or not np.isfinite(actual).all():
        return 1.0
    return relative_error({"y": expected}, {"y": actual})


def _exact(subject: Subject, x: Array) -> Doubles | None:
    """The result of the definition in float64; for several images only the first, unless the weights differ."""
    definition = subject.definition
    wanted = definition.inputs[subject.place]
    others = [value for index, value in enumerate(definition.inputs) if value is not None and index != subject.place]
    constants = [constant_array(value) for value in others if is_constant(value)]
    if definition.op_type == "Conv" or (definition.op_type == "MatMul" and x.ndim > 2 >= constants[0].ndim):
        x = x[:1]
    if wanted is not None and wanted.shape is not None and x.ndim > len(wanted.shape):
        x = planar(x, int(wanted.shape.numpy()[1]))
    operands: list[Doubles | None] = []
    for index, value in enumerate(definition.inputs):
        array = numbers_of(value)
        operands.append(x.astype(np.float64) if index == subject.place else _double(array))
    attributes = {name: attribute.value for name, attribute in definition.attributes.items()}
    return evaluate(definition.op_type, attributes, operands)


def _double(array: Array | None) -> Doubles | None:
    return None if array is None else array.astype(np.float64)


def planar(blocked: Array, channels: int) -> Array:
    """[N, CB, H, W, b] -> [N, channels, H, W]."""
    n, count, height, width, lanes = blocked.shape
    unblocked = np.moveaxis(blocked, 4, 2).reshape(n, count * lanes, height, width)
    return unblocked[:, :channels]
