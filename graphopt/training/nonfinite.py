"""Where NaN and infinities come from: run a step in ONNX Runtime and look at every value in order.

    y = Exp(x)     x finite, y holds an infinity: Exp made it
    z = Sub(y, y)  y holds an infinity already: not the origin

Each value is reduced to two numbers inside the model, so that no activation is kept: sum(0 * x) is NaN where an element
is not finite, and the count of NaN.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.frontend.shapes import infer_shapes
from graphopt.graph.constness import is_constant, stored
from graphopt.graph.state import exposed
from graphopt.training.engine import Array, not_finite
from graphopt.verify.oracle import run_onnxruntime

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16})
_FINITE, _NAN = "graphopt.finite/", "graphopt.nan/"


@dataclass(frozen=True, slots=True)
class NonFinite:
    """The origin: `kind` is "input", "state" or the operator of the node `name`; `value` is what it gave."""

    kind: str
    name: str
    value: str

    def __str__(self) -> str:
        """The end of a sentence."""
        if self.kind == "input":
            return f"input {self.name} holds NaN or an infinity"
        if self.kind == "state":
            return f"{self.name} held NaN or an infinity before the step"
        return f"node {self.name} ({self.kind}) made the first NaN or infinity, in {self.value}"


def first_nan(model: ir.Model, feeds: Mapping[str, Array], state: Mapping[str, Array]) -> NonFinite | None:
    """The first value of a step that is not finite though everything it is computed from is; None if all are finite.

    A constant -infinity, as attention masks hold, and what is computed from it, is no origin unless NaN comes of it.

    Args:
        model: the step model.
        feeds: the inputs of the step.
        state: the state before the step.

    Raises:
        VerificationError: ONNX Runtime rejects the step.
    """
    for kind, given in (("input", feeds), ("state", state)):
        if (name := not_finite(given)) is not None:
            return NonFinite(kind, name, name)
    watched = exposed(model)
    graph = watched.graph
    nodes = list(graph)
    if any(value.dtype is None for node in nodes for value in node.outputs):
        infer_shapes(watched)
    infinite = {str(value.name) for value in graph.initializers.values() if _holds_infinity(value)}
    del graph.outputs[:]
    for node in nodes:
        for value in node.outputs:
            if value.dtype in _FLOATS:
                _watch(graph, value)
    found = run_onnxruntime(watched, {name: np.asarray(each) for name, each in {**feeds, **state}.items()})
    infinite |= {
        name.removeprefix(_FINITE) for name, sum_ in found.items() if _FINITE in name and not np.isfinite(sum_)
    }
    nan = {name.removeprefix(_NAN) for name, count in found.items() if _NAN in name and count > 0}
    for tainted in (infinite, nan):
        for node in nodes:
            given_names = {str(value.name) for value in node.inputs if value is not None}
            bad = [str(value.name) for value in node.outputs if value.name in tainted]
            if bad and not given_names & tainted:
                return NonFinite(node.op_type, node.name or bad[0], bad[0])
    return None


def _watch(graph: ir.Graph, value: ir.Value) -> None:
    """Add the two numbers of `value` as outputs."""
    assert value.dtype is not None
    zero = ir.node("Constant", [], {"value": ir.tensor(np.zeros((), value.dtype.numpy()))})
    product = ir.node("Mul", [value, zero.outputs[0]])
    total = ir.node("ReduceSum", product.outputs, {"keepdims": 0})
    nan = ir.node("IsNaN", [value])
    number = ir.node("Cast", nan.outputs, {"to": int(ir.DataType.FLOAT)})
    count = ir.node("ReduceSum", number.outputs, {"keepdims": 0})
    for index, node in enumerate((zero, product, total, nan, number, count)):
        node.name = f"{_FINITE}{value.name}/{index}"
        graph.append(node)
    for prefix, node, dtype in ((_FINITE, total, value.dtype), (_NAN, count, ir.DataType.FLOAT)):
        output = node.outputs[0]
        output.name, output.type, output.shape = prefix + str(value.name), ir.TensorType(dtype), ir.Shape(())
        graph.outputs.append(output)


def _holds_infinity(value: ir.Value) -> bool:
    """Whether a constant holds an infinity or NaN."""
    tensor = stored(value)
    if not is_constant(value) or tensor is None or tensor.dtype not in _FLOATS:
        return False
    return not bool(np.isfinite(tensor.numpy()).all())
