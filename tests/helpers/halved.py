"""Models rewritten to another precision, listed with their types."""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common

import graphopt
from graphopt.modes import Precision as Format
from graphopt.passes import Precision
from graphopt.pipeline.observe import Check
from graphopt.pipeline.pass_base import PassResult
from graphopt.pipeline.pipeline import Event
from graphopt.verify.oracle import Tolerance, random_inputs, run_onnxruntime
from tests.helpers.equal import require_equal

SHORT = {"FLOAT": "", "FLOAT16": "h", "BFLOAT16": "b", "DOUBLE": "d", "INT64": "i", "BOOL": "?"}


CLOSE = {"float32": Tolerance(1e-2, 1e-3), "float16": Tolerance(1e-2, 1e-3)}
"""Float32 outputs of a model that computes in float16."""


def parse(text: str, weights: Mapping[str, object] | None = None, opset: int = 20) -> ir.Model:
    """A model from ONNX text; inputs named in `weights` become those numbers, or random ones of that extents."""
    model = ir.from_onnx_text(f'<ir_version: 11, opset_import: ["": {opset}, "graphopt": 1]>\n{text}')
    generator = np.random.default_rng(0)
    for value in list(model.graph.inputs):
        given = (weights or {}).get(str(value.name))
        if given is None:
            continue
        array = given if isinstance(given, np.ndarray) else generator.uniform(0.5, 1.5, given)
        value.const_value = ir.Tensor(np.asarray(array, value.dtype.numpy()), name=value.name)
        value.shape = ir.Shape(array.shape)
        model.graph.inputs.remove(value)
        model.graph.register_initializer(value)
    for number, node in enumerate(model.graph.all_nodes()):
        node.name = f"{node.op_type.lower()}{number}"
        if node.domain == "graphopt":
            graphopt.ops.ensure(model, node.op_type)
    ir.passes.common.ShapeInferencePass()(model)
    return model


def listing(model: ir.Model) -> str:
    """One line per node, the letter of its type behind each value and constant: none for float32, h for float16."""

    def letter(value: ir.Value) -> str:
        return SHORT[value.dtype.name]

    def argument(value: ir.Value | None) -> str:
        if value is None:
            return "-"
        extents = ",".join(map(str, value.shape or ()))
        return f"const[{extents}]{letter(value)}" if value.is_initializer() else f"{value.name}"

    return "\n".join(
        ", ".join(f"{value.name}:{letter(value)}" if letter(value) else str(value.name) for value in node.outputs)
        + f" = {node.op_type}({', '.join(map(argument, node.inputs))})"
        for node in model.graph
    )


def check_types(model: ir.Model) -> None:
    """Types and shapes on all values are those that inference finds."""
    inferred = model.clone()
    outputs = set(inferred.graph.outputs)
    for node in inferred.graph:
        for value in node.outputs:
            if value not in outputs:
                value.type = value.shape = None
    ir.passes.common.ShapeInferencePass()(inferred)
    mine = {v.name: (v.dtype, v.shape) for node in model.graph for v in node.outputs}
    found = {v.name: (v.dtype, v.shape) for node in inferred.graph for v in node.outputs if v.dtype is not None}
    assert found
    for name, (dtype, shape) in found.items():  # of some GroupNormalization inference finds no shape
        assert mine[name] == (dtype, mine[name][1] if shape is None else shape)


def halve(
    text: str, weights: Mapping[str, object] | None = None, to: str = "fp16", opset: int = 20, *, execute: bool = True
) -> tuple[ir.Model, PassResult]:
    model = parse(text, weights, opset)
    before = listing(model)
    ports = [(v.name, v.dtype, v.shape) for v in (*model.graph.inputs, *model.graph.outputs)]
    feeds = random_inputs(model, 0)
    expected = run_onnxruntime(model, feeds)
    each = Precision(Format(to))
    result = each(model)
    assert isinstance(result, PassResult)
    assert result.modified == (listing(model) != before), "the result lies about what was modified"
    Check()(Event(1, each.name, model, None))
    check_types(model)
    assert [(v.name, v.dtype, v.shape) for v in (*model.graph.inputs, *model.graph.outputs)] == ports
    assert all(value.uses() or value.is_graph_output() for value in model.graph.initializers.values())
    casts = [(node.inputs[0], node.outputs[0].dtype) for node in model.graph if node.op_type == "Cast"]
    assert len(set(casts)) == len(casts), "a value is cast twice"
    if execute:
        require_equal(expected, run_onnxruntime(model, feeds), "after the pass", CLOSE)
    after = listing(model)
    assert not each(model).modified, listing(model)
    assert listing(model) == after
    return model, result


def reasons(result: PassResult) -> dict[str, str]:
    return {refusal.node: refusal.reason for refusal in result.refusals}
