"""The step model: what the loop reads from it, its digest, and the passes that make it."""

from __future__ import annotations

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from graphopt.errors import GraphoptError, ModelError
from graphopt.graph import state
from graphopt.training.build import StepOptions, build_step, from_step_model, kind_of, pipeline
from tests.helpers import step_models


def test_a_step_model_is_taken_as_it_is() -> None:
    step = build_step(step_models.proto(step_models.softmax()), StepOptions())
    assert (step.loss, step.original, step.signature.labels, step.signature.batch) == ("loss", None, "labels", 32)
    assert [port.name for port in step.signature.ports] == ["image", "labels"]
    assert step.roles == {
        "w": state.Role.PARAMETER,
        "b": state.Role.PARAMETER,
        "momentum": state.Role.OPTIMIZER,
    }


def test_the_digest_is_of_the_graph_and_not_of_the_state() -> None:
    first = from_step_model(step_models.softmax()).digest()
    assert from_step_model(step_models.softmax()).digest() == first
    reread = build_step(step_models.proto(step_models.softmax()), StepOptions())
    assert reread.digest() == first
    moved = step_models.softmax()
    weight = next(state.states(moved.graph))
    weight.const_value = ir.tensor(np.ones(tuple(weight.shape.numpy()), np.float32), name=weight.name)
    assert from_step_model(moved).digest() == first
    assert from_step_model(step_models.softmax(16)).digest() != first
    other = step_models.softmax()
    next(node for node in other.graph if node.op_type == "ArgMax").attributes["keepdims"] = ir.AttrInt64("keepdims", 1)
    assert from_step_model(other).digest() != first


@pytest.mark.parametrize(
    ("options", "spelled"),
    [
        (StepOptions(), "loss{kind=cross-entropy},differentiate,optimizer{kind=sgd}"),
        (
            StepOptions(
                loss="mse", output="y", optimizer="adamw", optimizer_options={"beta2": "0.99"}, micro_batches=4
            ),
            "loss{kind=mse,output=y},differentiate,optimizer{kind=adamw,beta2=0.99},microbatch{count=4}",
        ),
        (
            StepOptions(loss_options={"ignore-index": "-100"}),
            "loss{kind=cross-entropy,ignore-index=-100},differentiate,optimizer{kind=sgd}",
        ),
    ],
)
def test_the_passes(options: StepOptions, spelled: str) -> None:
    assert pipeline(options) == spelled


def test_kinds_with_options() -> None:
    assert kind_of("adamw{beta2=0.99,epsilon=1e-6}", "optimizer") == ("adamw", {"beta2": "0.99", "epsilon": "1e-6"})
    assert kind_of("sgd", "optimizer") == ("sgd", {})
    for text in ("", "adam{", "adam,sgd"):
        with pytest.raises(GraphoptError, match="cannot read the optimizer"):
            kind_of(text, "optimizer")


def test_a_loss_that_is_no_scalar() -> None:
    model = step_models.linear()
    model.graph.metadata_props[state.LOSS] = "w_next"
    with pytest.raises(ModelError, match=r"the loss w_next is FLOAT \[3,1\], and a scalar of floats is needed"):
        from_step_model(model)
    model.graph.metadata_props[state.LOSS] = "error"
    with pytest.raises(ModelError, match="the loss is named 'error', which is no output"):
        from_step_model(model)


def test_state_that_goes_nowhere() -> None:
    model = step_models.linear()
    next(state.states(model.graph)).metadata_props[state.NEXT] = "gone"
    with pytest.raises(ModelError, match="state w becomes gone, which is no output"):
        from_step_model(model)


def test_nothing_to_train() -> None:
    model = step_models.linear()
    state.mark(next(state.states(model.graph)), state.Role.COUNTER)
    with pytest.raises(ModelError, match="has no parameter to train"):
        from_step_model(model)


def test_names_that_the_model_has_already_are_not_mistaken_for_those_of_the_loss() -> None:
    """An input called labels and an output called correct of the user's own; the loss adds others."""
    text = """<ir_version: 10, opset_import: ["": 20]>
        g (float[4, 3] x, float[4, 5] labels) => (float[4, 5] y, float[4, 5] correct)
        <float[3, 5] w = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15}>
        { p = MatMul(x, w)  y = Add(p, labels)  correct = Neg(y) }"""
    options = StepOptions(batch=4, loss_options={"labels": "goal"})
    made = build_step(onnx.parser.parse_model(text), options)
    assert made.signature.labels == "goal"
    assert made.correct not in (None, "correct")
    assert {port.name for port in made.signature.ports} == {"x", "labels", "goal"}
