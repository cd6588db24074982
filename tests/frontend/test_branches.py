"""An If with a constant condition: the branch taken, outer values, names that both branches use, other conditions."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from graphopt.frontend.load import load
from graphopt.verify.oracle import run_onnxruntime

BODY = """<ir_version: 10, opset_import: ["": 20]>
agraph (float[2] x{inputs}) => (float[2] y, float[2] z)
<bool c = {{{condition}}}>
{{
  a = Abs (x)
  y, z = If (c) <
    then_branch = one () => (float[2] p, float[2] q) {{ p = Neg (a)  q = Identity (a) }},
    else_branch = two () => (float[2] p, float[2] q) {{ t = Exp (a)  p = Neg (t)  q = Sqrt (t) }}
  >
}}"""


def model(condition: int, inputs: str = "") -> onnx.ModelProto:
    return onnx.parser.parse_model(BODY.format(condition=condition, inputs=inputs))


@pytest.mark.parametrize(("condition", "operators"), [(1, {"Abs", "Neg"}), (0, {"Abs", "Exp", "Neg", "Sqrt"})])
def test_the_branch_that_is_taken_replaces_the_node(condition: int, operators: set[str]) -> None:
    source = model(condition)
    loaded = load(source).model
    assert {node.op_type for node in loaded.graph} - {"Identity"} == operators
    assert [value.name for value in loaded.graph.outputs] == ["y", "z"]
    feeds = {"x": np.array([1, -4], np.float32)}
    a = np.abs(feeds["x"])
    y, z = (-a, a) if condition else (-np.exp(a), np.sqrt(np.exp(a)))
    found = run_onnxruntime(loaded, feeds)
    np.testing.assert_allclose(found["y"], y, rtol=1e-6)
    np.testing.assert_allclose(found["z"], z, rtol=1e-6)


def test_two_nodes_may_use_the_same_names_inside() -> None:
    source = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 20]>
        agraph (float[2] x) => (float[2] y)
        <bool c = {1}>
        {
          a = If (c) < then_branch = one () => (float[2] p) { t = Neg (x)  p = Exp (t) },
                       else_branch = two () => (float[2] p) { p = Exp (x) } >
          y = If (c) < then_branch = three () => (float[2] p) { t = Neg (a)  p = Exp (t) },
                       else_branch = four () => (float[2] p) { p = Exp (a) } >
        }"""
    )
    loaded = load(source).model
    assert [node.op_type for node in loaded.graph] == ["Neg", "Exp", "Neg", "Exp"]
    x = np.array([1, -1], np.float32)
    np.testing.assert_allclose(run_onnxruntime(loaded, {"x": x})["y"], np.exp(-np.exp(-x)), rtol=1e-6)


def test_a_condition_that_is_an_input_stays() -> None:
    source = model(1, ", bool c")
    del source.graph.initializer[:]
    assert "If" in {node.op_type for node in load(source).model.graph}


def test_a_loop_without_iterations_keeps_the_extents_that_its_body_declares() -> None:
    """ONNX Runtime takes them from there; what the inner loop gives has an open dimension."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 20]>
        g (int64 n, float[3] x) => (float[3] y, float[a,b,c] z) {
            y, z = Loop(n, "", x) <body = outer (int64 i, bool t, float[3] s) => (bool u, float[3] v, float[2,3] w) {
                two = Constant<value_int = 2>()
                k, p = Loop(two, "", s) <body = m (int64 j, bool q, float[3] r) => (bool e, float[3] f, float[3] h) {
                    e = Identity(q) f = Neg(r) h = Abs(r) }>
                u = Identity(t) v = Identity(k) w = Identity(p) }> }"""
    )
    for n in (0, 2):
        feeds = {"n": np.array(n), "x": np.arange(3, dtype=np.float32)}
        want = run_onnxruntime(model, feeds)
        for name, array in run_onnxruntime(load(model).model, feeds).items():
            np.testing.assert_array_equal(array, want[name], strict=True)


def test_what_only_an_unused_branch_reads_is_not_kept() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 20]>
        g (bool t, float[3] x) => (float[3] y) {
            a = If(t)<
                then_branch = p () => (float[3] b) { b = Neg(x) },
                else_branch = q () => (float[3] c) { c = Abs(x) }>
            d = If(t)<
                then_branch = r () => (float[3] e) { e = Neg(a) },
                else_branch = s () => (float[3] f) { f = Abs(a) }>
            y = Relu(x) }"""
    )
    assert [node.op_type for node in load(model).model.graph] == ["Relu"]
