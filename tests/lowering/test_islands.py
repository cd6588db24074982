"""Small native groups between nodes of ONNX Runtime join them; others stay native."""

from typing import Any

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from graphopt.compiler import compile_model
from graphopt.cost.roofline import Machine
from graphopt.lowering.islands import islands
from graphopt.program.program import FallbackSegment
from graphopt.verify.oracle import compare, run_onnxruntime


def model(body: str, shape: str = "float[2,3] x", result: str = "float y") -> ir.Model:
    text = f'<ir_version: 10, opset_import: ["": 20]> g ({shape}) => ({result}) {{ {body} }}'
    built = ir.from_proto(onnx.parser.parse_model(text))
    for node in built.graph:
        for value in node.outputs:
            value.shape, value.type = ir.Shape([2, 3]), ir.TensorType(ir.DataType.FLOAT)
    return built


def found(built: ir.Model, *refused: str, machine: Machine = Machine()) -> list[str]:  # noqa: B008
    nodes = list(built.graph)
    return [node.op_type for node in islands(nodes, {n for n in nodes if n.op_type in refused}, machine)]


@pytest.mark.parametrize(
    ("body", "small"),
    [
        ("a = Sin(x) b = Abs(a) c = Neg(b) y = Cos(c)", ["Abs", "Neg"]),  # between
        ("a = Abs(x) b = Sin(a) y = Neg(b)", []),  # one before, one behind
        ("a = Sin(x) b = Abs(a) c = Neg(x) d = Mul(b, c) y = Cos(d)", ["Abs", "Mul"]),  # Neg waits for nobody
        ("a = Sin(x) b = Abs(a) c = Cos(b) d = Neg(a) y = Mul(c, d)", ["Abs"]),  # nobody waits for Neg
        ("a = Abs(x) y = Neg(a)", []),
    ],
)
def test_who_stands_between(body: str, small: list[str]) -> None:
    assert found(model(body), "Sin", "Cos") == small


def test_a_group_that_computes_long_stays() -> None:
    built = model("a = Sin(x) b = Abs(a) c = Neg(b) y = Cos(c)")
    assert found(built, "Sin", "Cos", machine=Machine(bandwidth=1e3)) == []


def test_a_branch_that_captures_a_value_waits_for_it() -> None:
    text = """<ir_version: 10, opset_import: ["": 20]> g (bool c, float[2,3] x) => (float[2,3] y) {
        a = Sin(x) b = Abs(a)
        y = If(c) <then_branch = t () => (z) { z = Neg(b) }, else_branch = e () => (w) { w = Exp(x) }> }"""
    built = ir.from_proto(onnx.parser.parse_model(text))
    assert found(built, "Sin", "If") == ["Abs"]


def test_operators_of_ours_stay() -> None:
    built = model("a = Sin(x) b = Abs(a) y = Cos(b)")
    node = next(node for node in built.graph if node.op_type == "Abs")
    node.domain = "graphopt"
    assert found(built, "Sin", "Cos") == []


def test_bfloat16_stays() -> None:
    """ONNX Runtime may have no kernel for it."""
    built = model("a = Sin(x) b = Abs(a) c = Neg(b) y = Cos(c)")
    next(node for node in built.graph if node.op_type == "Abs").outputs[0].dtype = ir.DataType.BFLOAT16
    assert found(built, "Sin", "Cos") == []


def test_one_model_instead_of_two() -> None:
    """The scale of a dynamic tensor is a scalar, whose kernel would stand in the way."""
    text = """<ir_version: 10, opset_import: ["": 20]> g (float[40] x, float[1] w) => (float[n] y) {
        i = NonZero(x) s = Squeeze(i) g = Gather(x, s) q, scale, zero = DynamicQuantizeLinear(g)
        t = Mul(scale, w) f = DequantizeLinear(q, scale, zero) y = Mul(f, t) }"""
    built = onnx.parser.parse_model(text)
    feeds: dict[str, Any] = {"x": np.linspace(-1, 1, 40, dtype=np.float32), "w": np.full(1, 3, np.float32)}
    artifact = compile_model(built).artifact
    segments = artifact.program.stages[0].segments
    assert sum(isinstance(each, FallbackSegment) for each in segments) == 1
    expected = run_onnxruntime(ir.from_proto(built), feeds)
    assert not compare(expected, artifact.session().run(feeds))
