"""`first_nan` names the operator that made the first NaN or infinity, not those that hand it on."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.training.nonfinite import first_nan
from tests.helpers import step_models

BODIES = {
    "overflow": ("e = Exp (x)\n n = Sub (e, e)\n loss = ReduceSum <keepdims = 0> (n)", "exp0"),
    "logarithm of nothing": ("z = Sub (x, x)\n l = Log (z)\n loss = ReduceSum <keepdims = 0> (l)", "log1"),
    "zero over zero": ("z = Sub (x, x)\n d = Div (z, z)\n loss = ReduceSum <keepdims = 0> (d)", "div1"),
    "root of a negative": ("n = Neg (x)\n r = Sqrt (n)\n loss = ReduceSum <keepdims = 0> (r)", "sqrt1"),
}
STATE = {"w": ("parameter", "w_next", np.zeros(2, np.float32))}


def _model(body: str) -> ir.Model:
    text = f"m (float[2] x, float[2] w) => (float loss, float[2] w_next) {{ {body}\n w_next = Add (w, x) }}"
    return step_models.step_model(text, STATE)


@pytest.mark.parametrize("name", BODIES)
def test_the_origin_is_named(name: str) -> None:
    body, origin = BODIES[name]
    found = first_nan(_model(body), {"x": np.full(2, 100, np.float32)}, {"w": np.zeros(2, np.float32)})
    assert found is not None
    assert found.name == origin
    assert f"node {origin} (" in str(found)


def test_nothing_is_found_where_all_is_finite() -> None:
    feeds = {"x": np.array([1, 1e-45], np.float32)}  # the second is denormal
    assert first_nan(_model(BODIES["overflow"][0]), feeds, {"w": np.zeros(2, np.float32)}) is None


def test_an_update_that_overflows_is_named() -> None:
    model = step_models.linear()
    feeds = {
        "x": np.full((4, 3), 1e15, np.float32),
        "y": np.zeros((4, 1), np.float32),
        "lr": np.array(3e38, np.float32),
    }
    found = first_nan(model, feeds, {"w": np.full((3, 1), 1e-25, np.float32)})
    assert str(found) == "node mul8 (Mul) made the first NaN or infinity, in s"


def test_inputs_and_state_come_first() -> None:
    good = np.zeros(2, np.float32)
    bad = np.array([0, np.nan], np.float32)
    model = _model(BODIES["overflow"][0])
    assert str(first_nan(model, {"x": bad}, {"w": good})) == "input x holds NaN or an infinity"
    assert "w held NaN or an infinity before the step" in str(first_nan(model, {"x": good}, {"w": bad}))


def test_a_mask_of_minus_infinity_is_no_origin() -> None:
    """Attention masks hold -infinity; the softmax of a row with nothing else makes the NaN."""
    body = "s = Add (x, mask)\n p = Softmax <axis = 0> (s)\n q = Exp (p)\n loss = ReduceSum <keepdims = 0> (q)"
    text = (
        f"m (float[2] x, float[2] mask, float[2] w) => (float loss, float[2] w_next) {{ {body}\n w_next = Add (w, x) }}"
    )
    model = step_models.step_model(text, STATE)
    value = next(each for each in model.graph.inputs if each.name == "mask")
    model.graph.inputs.remove(value)
    value.const_value = ir.tensor(np.full(2, -np.inf, np.float32), name="mask")
    model.graph.register_initializer(value)
    found = first_nan(model, {"x": np.ones(2, np.float32)}, {"w": np.zeros(2, np.float32)})
    assert found is not None
    assert found.name == "softmax1"
