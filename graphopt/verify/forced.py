"""Compare two computations of a model step by step, each step on the same operands.

    y = f(x)  z = g(y)        y', z' of another computation:      f(x) beside y',  g(y') beside z'

In a model that rounds to quantization steps, one early last bit changes the outputs, so comparing outputs proves
nothing. But values computed from identical operands differ in their last bits only, unless one is wrong. So ONNX
Runtime recomputes every value that both computations have from the operands of the other one, all at once: each such
value is an input and an output of one model.

Quantization to 8 bits may lie between two such values. Then ONNX Runtime computes everything twice more, with the
quantized operand a hundredth of a step higher and lower: numbers close to a tie then round the other way, and a value
may differ by as much as that moves it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from graphopt.graph.constness import constant_array, is_constant
from graphopt.verify.oracle import TOLERANCES, Mismatch, Tolerance, compare, own_copy, run_onnxruntime

if TYPE_CHECKING:
    from graphopt.artifact import Artifact
    from graphopt.verify.oracle import Reference

Values = Mapping[str, Any]

STEP = {"int8": 1.0, "uint8": 1.0}
"""Allowed difference of a value of 8 bits: a tie is rounded up or down."""

TIE = 0.01
"""Distance to a tie, in steps, within which the order of a floating-point sum decides whether it rounds up or down."""

FACTOR_TIE = 1e-4
"""The same for exact sums of 8-bit integers, of which only one factor is rounded: relative to the result."""


def recomputed(model: ir.Model, values: Values, feeds: Values, shift: float = 0.0) -> dict[str, Any]:
    """Recompute those of `values` that `model` computes, each from the others as they are given.

    Values of another dtype or rank than the model's are left alone. Where a quantized result is not among `values`, its
    operand is moved by `shift` times `TIE` or `FACTOR_TIE`.

    Raises:
        VerificationError: ONNX Runtime rejects the model or the values.
    """
    copy = own_copy(model)
    given = dict(feeds)
    names: dict[str, str] = {}
    outputs: list[ir.Value] = []
    copy.graph.outputs.clear()  # so that consumers of an output can read the given value
    for node in copy.graph:
        for value in node.outputs:
            name = str(value.name)
            if name not in values or not _fits(value, values[name]):
                continue
            value.name = f"{name}.computed"
            names[value.name] = name
            outputs.append(value)
            if value.uses():
                entering = ir.Value(name=name, type=value.type, shape=_open(values[name]))
                copy.graph.inputs.append(entering)
                ir.convenience.replace_all_uses_with(value, entering, replace_graph_outputs=False)
                given[name] = values[name]
            value.shape = None
    if shift:
        for node in _hidden_steps(copy, outputs):
            _move(copy.graph, node, shift)
    copy.graph.outputs[:] = outputs
    ir.passes.common.RemoveUnusedNodesPass()(copy)
    left = {str(value.name) for value in copy.graph.inputs}
    computed = run_onnxruntime(copy, {name: array for name, array in given.items() if name in left})
    return {names[name]: array for name, array in computed.items()}


def _hidden_steps(model: ir.Model, known: Collection[ir.Value]) -> list[ir.Node]:
    """The nodes that round to 8 bits and whose results are not `known`."""
    steps = (node for node in model.graph if node.domain == "" and node.op_type in _MOVES)
    return [node for node in steps if node.outputs[0] not in known]


def _move(graph: ir.Graph, node: ir.Node, shift: float) -> None:
    """Move the operand of a quantizing node `shift` times `TIE` steps up, or its sums `shift` times `FACTOR_TIE`."""
    position = _MOVES[node.op_type]
    scale = node.inputs[position]
    if not is_constant(scale):
        return
    numbers = constant_array(scale)
    if numbers.dtype.kind != "f":
        return
    if node.op_type != "QuantizeLinear":
        node.replace_input_with(position, _constant(graph, numbers * numbers.dtype.type(1 - shift * FACTOR_TIE)))
        return
    x = node.inputs[0]
    if x is None or x.shape is None or x.dtype != scale.dtype or node.attributes.get_int("block_size", 0) != 0:
        return
    if numbers.size > 1:
        rank = len(x.shape)
        axis = (node.attributes.get_int("axis", 1) or 0) % rank
        numbers = numbers.reshape(-1, *(1,) * (rank - 1 - axis))
    moved = ir.node("Add", [x, _constant(graph, numbers * numbers.dtype.type(shift * TIE))])
    graph.insert_before(node, moved)
    moved.outputs[0].name = f"{node.outputs[0].name}.moved"
    node.replace_input_with(0, moved.outputs[0])


_MOVES = {"QuantizeLinear": 1, "QLinearConv": 6, "QLinearMatMul": 6}
"""Operators that round to 8 bits, and the position of the operand that is the scale of their result."""


def _constant(graph: ir.Graph, array: Any) -> ir.Value:
    name = f"moved.{len(graph.initializers)}"
    tensor = ir.Tensor(np.asarray(array), name=name)
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def _fits(value: ir.Value, array: Any) -> bool:
    if not isinstance(array, np.ndarray) or value.dtype is None or array.dtype != value.dtype.numpy():
        return False
    return value.shape is None or len(value.shape) == array.ndim


def _open(array: Any) -> ir.Shape:
    return ir.Shape([None] * array.ndim)


def wrong_steps(
    model: ir.Model, values: Values, feeds: Values, tolerances: Mapping[str, Tolerance] = TOLERANCES
) -> tuple[list[Mismatch], int]:
    """Mismatches with what `model` computes from the same operands, in its order, and the number of values compared."""
    again = recomputed(model, values, feeds)
    allowed = {name: STEP.get(array.dtype.name, 0.0) for name, array in again.items()}
    known = {value for node in model.graph for value in node.outputs if value.name in again}
    for shift in (1.0, -1.0) if _hidden_steps(model, known) else ():
        for name, moved in recomputed(model, values, feeds, shift).items():
            allowed[name] += _distance(again[name], moved)
    return compare(again, values, tolerances, allowed), len(again)


def _distance(a: Any, b: Any) -> float:
    """The largest difference of numbers, 0.0 where the shapes differ or nothing is finite in both."""
    if a.shape != b.shape or a.dtype.kind not in "fiu":
        return 0.0
    both = np.isfinite(a) & np.isfinite(b)
    return float(np.abs(a[both].astype(np.float64) - b[both].astype(np.float64)).max(initial=0.0))


def values_of(model: Reference, feeds: Values) -> dict[str, Any]:
    """All values of the main graph of `model`, whether it declares their types or not."""
    copy = own_copy(model)
    values = (value for node in copy.graph for value in node.outputs)
    copy.graph.outputs.extend(value for value in values if value.name and not value.is_graph_output())
    return run_onnxruntime(copy, feeds)


def traced(artifact: Artifact, model: ir.Model, feeds: Values) -> dict[str, Any]:
    """The values that kernel calls of the program write, by their names in `model`, which it was lowered from.

    A fused kernel writes the value that other nodes read; where that is ambiguous, the value is left out.
    """
    nodes = {str(node.name): node for node in model.graph}
    typed = {str(value.name) for node in model.graph for value in node.outputs}
    values: dict[str, Any] = {}
    for origin, written in artifact.session().trace(feeds):
        own = [nodes[name] for name in origin if name in nodes]
        ends = [value for node in own for value in node.outputs if value.name and _leaves(value, own)]
        for name, array in written.items():
            if not isinstance(array, np.ndarray):
                continue
            alike = [str(value.name) for value in ends if _is(value, array)]
            key = name if name in typed else alike[0] if len(alike) == 1 else None
            if key is not None:
                values[key] = array
    return values


def _leaves(value: ir.Value, own: list[ir.Node]) -> bool:
    return value.is_graph_output() or any(use.node not in own for use in value.uses())


def _is(value: ir.Value, array: Any) -> bool:
    shape = value.shape.numpy() if value.shape is not None and value.shape.is_static() else None
    return value.dtype is not None and value.dtype.numpy() == array.dtype and shape == array.shape
