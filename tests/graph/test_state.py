"""The state of a training model: its marks, what replaces it, and the form that ONNX Runtime is given."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from graphopt.errors import ModelError
from graphopt.graph import state


@pytest.fixture
def model() -> ir.Model:
    text = """<ir_version: 11, opset_import: ["": 20]> g (float[2] x) => (float[2] y, float[2] w_next)
        <float[2] w = {1, 2}, float[2] c = {3, 4}> { y = Mul(x, w)  w_next = Add(w, c) }"""
    model = ir.from_onnx_text(text)
    w = model.graph.initializers["w"]
    state.mark(w, state.Role.PARAMETER)
    w.metadata_props[state.NEXT] = "w_next"
    return model


def test_state_is_listed_with_its_role_and_its_successor(model: ir.Model) -> None:
    (w,) = state.states(model.graph)
    assert w.name == "w"
    assert state.role(w) is state.Role.PARAMETER
    assert state.role(model.graph.initializers["c"]) is None
    assert state.next_value(w, model.graph) is model.graph.outputs[1]


def test_onnx_runtime_is_given_the_state_or_takes_its_first_value(model: ir.Model) -> None:
    proto = ir.to_proto(state.exposed(model))
    assert [value.name for value in proto.graph.input] == ["x", "w"]
    assert [value.name for value in model.graph.inputs] == ["x"]
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    x = np.ones(2, np.float32)
    y, w = session.run(None, {"x": x})
    np.testing.assert_array_equal(y, [1, 2])
    np.testing.assert_array_equal(session.run(None, {"x": x, "w": w})[0], [4, 6])


@pytest.mark.parametrize("inputs", [True, False])
def test_the_marks_survive_a_file(model: ir.Model, inputs: bool) -> None:
    again = ir.from_proto(ir.to_proto(state.exposed(model) if inputs else model))
    (w,) = state.states(again.graph)
    assert w.metadata_props[state.NEXT] == "w_next"


def test_a_successor_of_another_shape_is_refused(model: ir.Model) -> None:
    (w,) = state.states(model.graph)
    model.graph.outputs[1].shape = ir.Shape([3])
    with pytest.raises(ModelError, match="state w is"):
        state.next_value(w, model.graph)
    w.metadata_props[state.NEXT] = "nothing"
    with pytest.raises(ModelError, match="state w becomes nothing, which is no output"):
        state.next_value(w, model.graph)
