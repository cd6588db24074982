"""The pass differentiate: what it marks, in which order, what it refuses, and what is random in a step."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.errors import DifferentiationError
from graphopt.graph import state
from graphopt.graph.edit import ORIGIN_KEY, RULE_KEY
from graphopt.passes import Differentiate, Loss
from graphopt.passes.training.loss import Kind
from graphopt.verify.oracle import run_onnxruntime
from tests.helpers.text_models import parse

LAYERS = """g (float[4,3] x) => (float[4,2] y) {
    a = Gemm(x, w1, b1)  h = Relu(a)  y = Gemm(h, w2, b2) }"""


def layers(text: str = LAYERS, **shapes: tuple[int, ...]) -> ir.Model:
    shapes = shapes or {"w1": (3, 5), "b1": (5,), "w2": (5, 2), "b2": (2,)}
    listed = ", ".join(f"float[{','.join(map(str, shape))}] {name}" for name, shape in shapes.items())
    model = parse(text.replace(") =>", f", {listed}) =>", 1), shapes)
    for value in model.graph.initializers.values():
        if value.name in shapes:
            state.mark(value, state.Role.PARAMETER)
    return model


def differentiated(model: ir.Model, **options: bool | int) -> ir.Model:
    Loss()(model)
    assert Differentiate(**options)(model).modified
    return model


def test_gradients_are_outputs_that_parameters_name() -> None:
    model = differentiated(layers())
    names = {str(value.name): value.metadata_props[state.GRADIENT] for value in state.states(model.graph)}
    assert names == {name: f"{name}.gradient" for name in ("w1", "b1", "w2", "b2")}
    outputs = {value.name: value for value in model.graph.outputs}
    assert list(outputs)[:3] == ["y", "loss", "correct"]
    for name, gradient in names.items():
        assert outputs[gradient].shape == model.graph.initializers[name].shape
    again = Differentiate()(model)
    assert not again.modified
    assert again.notes == ("the model has its gradients already",)


def test_each_weight_gradient_follows_the_gradient_that_it_needs() -> None:
    model = differentiated(layers())
    phases = [
        (node.op_type, node.metadata_props[state.PHASE]) for node in model.graph if state.PHASE in node.metadata_props
    ]
    assert phases == [
        ("CrossEntropyGradient", "input-gradient"),
        ("Gemm", "weight-gradient"),
        ("ReduceSum", "weight-gradient"),
        ("Gemm", "input-gradient"),
        ("Greater", "input-gradient"),
        ("Where", "input-gradient"),
        ("Gemm", "weight-gradient"),
        ("ReduceSum", "weight-gradient"),
    ]


def test_every_node_of_the_backward_pass_knows_its_origin() -> None:
    model = differentiated(layers())
    backward = [node for node in model.graph if state.PHASE in node.metadata_props]
    assert all(node.metadata_props[RULE_KEY] == "differentiate" for node in backward)
    assert [node.metadata_props[ORIGIN_KEY] for node in backward[1:]] == ["gemm2"] * 3 + ["relu1"] * 2 + ["gemm0"] * 2


def test_nothing_is_computed_for_inputs_and_frozen_layers() -> None:
    model = layers()
    for name in ("w1", "b1"):
        del model.graph.initializers[name].metadata_props["graphopt.state"]
    differentiated(model)
    backward = [node.op_type for node in model.graph if state.PHASE in node.metadata_props]
    assert backward == ["CrossEntropyGradient", "Gemm", "ReduceSum"]


def test_parameters_without_influence_are_named() -> None:
    model = layers("g (float[4,2] x) => (float[4,2] y, float[4,2] z) { y = Add(x, a)  z = Mul(x, b) }", a=(2,), b=(2,))
    Loss()(model)
    result = Differentiate()(model)
    assert result.notes == ("the loss does not depend on b; training leaves them as they are",)
    assert state.GRADIENT not in model.graph.initializers["b"].metadata_props


def test_one_value_may_be_the_gradient_of_several_parameters() -> None:
    model = layers("g (float[1,2] x) => (float[1,2] y) { a = Add(x, p)  y = Add(a, q) }", p=(1, 2), q=(1, 2))
    Loss(kind=Kind.MSE)(model)
    Differentiate()(model)
    feeds = {"x": np.ones((1, 2), np.float32), "labels": np.zeros((1, 2), np.float32)}
    outputs = run_onnxruntime(model, feeds)
    np.testing.assert_array_equal(outputs["p.gradient"], outputs["y"])
    np.testing.assert_array_equal(outputs["q.gradient"], outputs["y"])


def test_all_nodes_without_a_gradient_are_named_at_once() -> None:
    model = layers(
        "g (float[4,4] x) => (float[4,4] y) { a = Mul(x, w)  b = Det(a)  c = Mod <fmod = 1>(a, w)  y = Add(b, c) }",
        w=(4, 4),
    )
    Loss(kind=Kind.MSE)(model)
    before = [node.name for node in model.graph]
    with pytest.raises(DifferentiationError) as raised:
        Differentiate()(model)
    message = str(raised.value)
    assert "det1 (Det has no rule; graphopt passes differentiate lists those there are); mod2 (Mod has no" in message
    assert [node.name for node in model.graph] == before


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("i = Cast <to = 7>(x)  f = Cast <to = 1>(i)  y = Identity(f)", "no parameter reaches the loss loss"),
        ("m = Mul(x, w)  i = Cast <to = 7>(m)  y = Cast <to = 1>(i)", "no parameter reaches the loss loss"),
        ("m = Mul(x, w)  y = Round(m)", "no parameter reaches the loss loss"),
    ],
)
def test_a_loss_that_no_parameter_reaches(body: str, message: str) -> None:
    model = layers(f"g (float[4,3] x) => (float[4,3] y, float[4,3] z) {{ {body}  z = Add(x, w) }}", w=(3,))
    Loss()(model)
    with pytest.raises(DifferentiationError, match=message):
        Differentiate()(model)


def test_a_model_without_a_loss() -> None:
    with pytest.raises(DifferentiationError, match="put the pass loss before differentiate"):
        Differentiate()(layers())
    model = layers()
    model.graph.metadata_props[state.LOSS] = "y"
    with pytest.raises(DifferentiationError, match=r"the loss y is FLOAT of shape \[4,2\], which is no scalar"):
        Differentiate()(model)


def dropping(seed: int = 0) -> ir.Model:
    text = """g (float[64,32] x) => (float[64,32] y) <bool t = {1}, float r = {0.25}> {
        a = Mul(x, w)  b = Dropout(a, r, t)  y = Dropout(b, r, t) }"""
    model = layers(text, w=(32,))
    Loss(kind=Kind.MSE)(model)
    assert Differentiate(seed=seed)(model).modified
    return model


def masks_of(model: ir.Model, step: int) -> dict[str, np.ndarray]:
    feeds = {"x": np.ones((64, 32), np.float32), "labels": np.zeros((64, 32), np.float32)}
    return run_onnxruntime(state.exposed(model), {**feeds, "graphopt.step": np.array(step, np.int64)})


def test_dropout_depends_on_its_seed_and_on_the_step() -> None:
    model = dropping()
    counter = model.graph.initializers["graphopt.step"]
    assert state.role(counter) is state.Role.COUNTER
    first, second = masks_of(model, 0), masks_of(model, 1)
    assert first["graphopt.step.next"] == 1
    assert second["graphopt.step.next"] == 2
    np.testing.assert_array_equal(first["y"], masks_of(model, 0)["y"])
    kept = first["y"] != 0
    assert 0.5 < kept.mean() < 0.62  # two layers keep three quarters each, with masks of their own
    assert (kept != (second["y"] != 0)).mean() > 0.3
    assert (kept != (masks_of(dropping(seed=1), 0)["y"] != 0)).mean() > 0.3
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("DropoutMask") == 2
    assert "Dropout" not in kinds


def test_the_gradient_passes_where_dropout_kept() -> None:
    model = dropping()
    outputs = masks_of(model, 3)
    weight = model.graph.initializers["w"].const_value
    assert weight is not None
    # loss = mean((m x w / 0.75^2)^2), m one where both masks keep
    expected = (2 * outputs["y"] ** 2 / weight.numpy()).sum(0) / outputs["y"].size
    np.testing.assert_allclose(outputs["w.gradient"], expected, rtol=1e-5)
