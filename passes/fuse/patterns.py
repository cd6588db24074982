"""Rules of fuse that recognise LayerNormalization and Gelu in the elementary operators that exporters emit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt.graph.edit import Editor, Rule, array_of, dims, ints, is_op, only_use, scalar_of

_GELU_OPSET = 20
_LAYER_NORM_OPSET = 17
_SAMPLES = np.concatenate([np.linspace(-6.0, 6.0, 97), [-0.01, 0.013, 0.7071]])

Vector = NDArray[np.float64]
Function = Callable[..., Vector]


def _erf(x: Vector) -> Vector:
    return np.array([math.erf(v) for v in np.ravel(x)]).reshape(np.shape(x))


_ELEMENTWISE: dict[str, Function] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Pow": np.power,
    "Tanh": np.tanh,
    "Erf": _erf,
    "Neg": np.negative,
}


def _gelu_erf(x: Vector) -> Vector:
    return 0.5 * x * (1.0 + _erf(x / math.sqrt(2.0)))


def _gelu_tanh(x: Vector) -> Vector:
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


_GELUS = {"none": _gelu_erf, "tanh": _gelu_tanh}
"""By the attribute `approximate`: Hendrycks and Gimpel, arXiv:1606.08415; they differ by up to 5e-4, far above the
tolerance of the comparison.
"""

_CURVE_TOLERANCE = 2e-6  # constants in float32 move the curve by about 1e-7 times |x|


def _gelu(editor: Editor, node: ir.Node) -> str | None:
    """A product whose operators, from one tensor x and scalar constants, compute Gelu(x) -> Gelu(x).

    The form does not matter: the curve is evaluated and compared at points between -6 and 6.
    """
    cone = _cone(node)
    if cone is None:
        return None
    x, inner = cone
    if editor.model.opset_imports.get("", 1) < _GELU_OPSET:
        return f"it computes Gelu, which needs opset {_GELU_OPSET}"
    values: dict[ir.Value, Vector] = {x: _SAMPLES}
    with np.errstate(all="ignore"):
        curve = _evaluate(node.outputs[0], values)
    for approximate, gelu in _GELUS.items():
        if np.abs(curve - gelu(_SAMPLES)).max() < _CURVE_TOLERANCE:
            y = editor.insert(
                node,
                "Gelu",
                [x],
                {"approximate": approximate},
                shape=node.outputs[0].shape,
                dtype=node.outputs[0].dtype,
                name=f"{node.name}.gelu",
                output=f"{node.outputs[0].name}.gelu",
                origin=inner,
            )
            editor.swap(node, y)
            return None
    return None


def _cone(root: ir.Node) -> tuple[ir.Value, list[ir.Node]] | None:
    """(the one tensor it depends on, its nodes) of an elementwise cone that holds an Erf or Tanh and ends in `root`.

    A node is added while all its consumers are inside; a value with a consumer outside becomes a leaf.
    """
    inside: dict[ir.Node, None] = {root: None}
    curve = False
    grown = True
    while grown and len(inside) <= 16:
        grown = False
        leaves = dict.fromkeys(v for n in inside for v in n.inputs if v is not None and v.producer() not in inside)
        tensors = [v for v in leaves if scalar_of(v) is None]
        if curve and len(tensors) == 1:
            return tensors[0], list(inside)
        for value in tensors:
            node = value.producer()
            if node is None or node.domain != "" or node.op_type not in _ELEMENTWISE or value.is_graph_output():
                continue
            if all(user in inside for user in value.consumers()):
                inside[node] = None
                curve = curve or is_op(node, "Erf", "Tanh")
                grown = True
                break  # the cone may now have a single leaf, whose producer stays outside
    return None


def _evaluate(value: ir.Value, known: dict[ir.Value, Vector]) -> Vector:
    """`value` as a function of x at the sample points `_SAMPLES`; `known` caches values."""
    if value in known:
        return known[value]
    constant = scalar_of(value)
    producer = value.producer()
    if constant is not None or producer is None:
        return np.full(_SAMPLES.shape, math.nan if constant is None else constant)
    arguments = [_evaluate(v, known) for v in producer.inputs if v is not None]
    known[value] = np.asarray(_ELEMENTWISE[producer.op_type](*arguments))
    return known[value]


def _layer_norm(editor: Editor, node: ir.Node) -> str | None:
    """(x - mean(x)) / sqrt(mean((x - mean)^2) + epsilon) [* g] [+ h] over the last axis -> LayerNormalization."""
    centred = node.inputs[0]
    match = _standardized(node)
    if match is None or centred is None:
        return None
    x, epsilon, inner = match
    if editor.model.opset_imports.get("", 1) < _LAYER_NORM_OPSET:
        return f"it computes LayerNormalization, which needs opset {_LAYER_NORM_OPSET}"
    shape = dims(x)
    if shape is None or x.dtype is None:
        return "its shape is not static"
    last, origin = node, [*inner, node]
    scale: ir.Value | None = None
    bias: ir.Value | None = None
    follower = only_use(last.outputs[0])
    if follower is not None and is_op(follower, "Mul") and _vector(follower, shape[-1]):
        scale, last = follower.inputs[1], follower
        origin.append(follower)
        follower = only_use(last.outputs[0])
    if follower is not None and is_op(follower, "Add") and _vector(follower, shape[-1]):
        bias, last = follower.inputs[1], follower
        origin.append(follower)
    inputs: list[ir.Value | None] = [x, _flat(editor, node, scale, shape[-1], x.dtype, 1.0)]
    if bias is not None:
        inputs.append(_flat(editor, node, bias, shape[-1], x.dtype, 0.0))
    y = editor.insert(
        last,
        "LayerNormalization",
        inputs,
        {"axis": -1, "epsilon": epsilon},
        shape=shape,
        dtype=x.dtype,
        name=f"{node.name}.layer_norm",
        output=f"{last.outputs[0].name}.layer_norm",
        origin=origin,
    )
    editor.swap(last, y)
    return None


def _standardized(div: ir.Node) -> tuple[ir.Value, float, list[ir.Node]] | None:
    """(x, epsilon, nodes) when `div` is (x - mean) / sqrt(mean((x - mean)^2) + epsilon) over the last axis."""
    sub, sqrt = _producer(div, 0, "Sub"), _producer(div, 1, "Sqrt")
    add = _producer(sqrt, 0, "Add")
    if sub is None or sqrt is None or add is None:
        return None
    epsilon = scalar_of(add.inputs[1])
    variance = _producer(add, 0, "ReduceMean")
    power = _producer(variance, 0, "Pow", "Mul")
    mean = _producer(sub, 1, "ReduceMean")
    if epsilon is None or variance is None or power is None or mean is None:
        return None
    centred, x = sub.outputs[0], sub.inputs[0]
    squared = power.inputs[0] is centred and (
        power.inputs[1] is centred if power.op_type == "Mul" else scalar_of(power.inputs[1]) == 2.0
    )
    if not squared or x is None or mean.inputs[0] is not x or not (_over_last(mean) and _over_last(variance)):
        return None
    return x, epsilon, [mean, sub, power, variance, add, sqrt]


def _producer(node: ir.Node | None, index: int, *op_types: str) -> ir.Node | None:
    value = node.inputs[index] if node is not None else None
    producer = value.producer() if value is not None else None
    return producer if is_op(producer, *op_types) else None


def _over_last(mean: ir.Node) -> bool:
    shape = dims(mean.inputs[0])
    given: NDArray[Any] | None = array_of(mean.inputs[1]) if len(mean.inputs) > 1 else None
    axes = ints(mean, "axes", []) if given is None else given.reshape(-1).tolist()
    return shape is not None and axes in ([-1], [len(shape) - 1]) and mean.attributes.get_int("keepdims", 1) == 1


def _vector(node: ir.Node, extent: int) -> bool:
    """Whether the second input is a constant along the last axis only."""
    array = array_of(node.inputs[1])
    return array is not None and array.size in (1, extent) and array.shape[-1:] in ((extent,), (1,), ())


def _flat(
    editor: Editor, node: ir.Node, value: ir.Value | None, extent: int, dtype: ir.DataType, default: float
) -> ir.Value:
    """The constant `value` broadcast to [extent]; without one, `default` in every element."""
    array = array_of(value)
    if array is not None and array.shape == (extent,) and value is not None:
        return value
    numbers = np.full(extent, default) if array is None else np.broadcast_to(array.reshape(-1), extent)
    return editor.constant(numbers.astype(dtype.numpy()), f"{node.name}.vector")


PATTERNS: dict[str, tuple[Rule, ...]] = {"Mul": (_gelu,), "Div": (_layer_norm,)}
