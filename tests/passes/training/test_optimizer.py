"""Updates against PyTorch's optimizers in float64, and against the papers' formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.errors import GraphoptError, ModelError
from graphopt.graph.state import GRADIENT, NEXT, PHASE, Role, role, states
from graphopt.passes import Optimizer
from graphopt.pipeline.observe import Check
from graphopt.pipeline.pipeline import Event, Pipeline
from tests.helpers.steps import Arrays, Trainer, feeds_of, random_arrays, slopes
from tests.helpers.text_models import listing

SHAPES = {"w": (4, 3), "b": (3,), "s": ()}
RATE = 0.03125

TORCH: dict[str, tuple[str, Any]] = {
    "sgd": ("kind=sgd", lambda p: torch.optim.SGD(p, RATE)),
    "momentum": ("momentum=0.9,weight-decay=0.01", lambda p: torch.optim.SGD(p, RATE, 0.9, weight_decay=0.01)),
    "dampening": ("momentum=0.9,dampening=0.3", lambda p: torch.optim.SGD(p, RATE, 0.9, 0.3)),
    "nesterov": (
        "momentum=0.8,nesterov,weight-decay=0.1",
        lambda p: torch.optim.SGD(p, RATE, 0.8, 0, 0.1, nesterov=True),
    ),
    "adagrad": ("kind=adagrad,weight-decay=0.1", lambda p: torch.optim.Adagrad(p, RATE, weight_decay=0.1)),
    "rmsprop": ("kind=rmsprop", lambda p: torch.optim.RMSprop(p, RATE)),
    "rmsprop with momentum": (
        "kind=rmsprop,alpha=0.9,momentum=0.9,epsilon=1e-6,weight-decay=0.01",
        lambda p: torch.optim.RMSprop(p, RATE, 0.9, 1e-6, 0.01, 0.9),
    ),
    "adam": ("kind=adam", lambda p: torch.optim.Adam(p, RATE)),
    "adam with decay": (
        "kind=adam,beta1=0.8,beta2=0.95,epsilon=1e-6,weight-decay=0.1",
        lambda p: torch.optim.Adam(p, RATE, (0.8, 0.95), 1e-6, 0.1),
    ),
    "adamw": ("kind=adamw", lambda p: torch.optim.AdamW(p, RATE)),
    "adamw without decay": ("kind=adamw,weight-decay=0", lambda p: torch.optim.AdamW(p, RATE, weight_decay=0)),
}


def optimized(options: str, weights: Arrays) -> ir.Model:
    model = slopes(weights)
    (each,) = Pipeline.parse(f"optimizer{{{options}}}").passes
    assert each(model).modified
    Check()(Event(1, "optimizer", model, None))
    return model


def trained(options: str, weights: Arrays, steps: int = 5) -> Arrays:
    trainer = Trainer(optimized(options, weights))
    shapes = {name: array.shape for name, array in weights.items()}
    for feeds in feeds_of(shapes, steps, next(iter(weights.values())).dtype):
        trainer.step(lr=RATE, **feeds)
    return {name: trainer.state[name] for name in weights}


def trained_in_torch(make: Any, weights: Arrays, steps: int = 5, clip: Any = None) -> Arrays:
    parameters = {name: torch.nn.Parameter(torch.tensor(array)) for name, array in weights.items()}
    optimizer = make(list(parameters.values()))
    shapes = {name: array.shape for name, array in weights.items()}
    for feeds in feeds_of(shapes, steps, next(iter(weights.values())).dtype):
        for name, parameter in parameters.items():
            parameter.grad = parameter.detach() + torch.tensor(feeds[f"{name}_slope"])
        if clip:
            clip(list(parameters.values()))
        optimizer.step()
    return {name: parameter.detach().numpy() for name, parameter in parameters.items()}


def require_close(found: Arrays, expected: Arrays, tolerance: float) -> None:
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("case", TORCH)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 2e-6)])
def test_five_steps_are_those_of_pytorch(case: str, dtype: Any, tolerance: float) -> None:
    options, make = TORCH[case]
    weights = random_arrays(SHAPES, 0, dtype)
    require_close(trained(options, weights), trained_in_torch(make, weights), tolerance)


@settings(max_examples=8, deadline=None)
@given(
    shape=st.lists(st.integers(0, 4), max_size=4).map(tuple),
    momentum=st.floats(0.01, 0.99),
    decay=st.floats(0, 1),
)
def test_any_shape(shape: tuple[int, ...], momentum: float, decay: float) -> None:
    weights = random_arrays({"w": shape}, 1)
    found = trained(f"momentum={momentum!r},weight-decay={decay!r}", weights, 3)
    make = lambda p: torch.optim.SGD(p, RATE, momentum, weight_decay=decay)  # noqa: E731
    require_close(found, trained_in_torch(make, weights, 3), 1e-10)


@pytest.mark.parametrize(
    ("options", "clip"),
    [
        ("clip-norm=0.5", lambda p: torch.nn.utils.clip_grad_norm_(p, 0.5)),
        ("clip-norm=1000", lambda p: torch.nn.utils.clip_grad_norm_(p, 1000)),
        ("clip-value=0.25", lambda p: torch.nn.utils.clip_grad_value_(p, 0.25)),
        (
            "clip-value=0.5,clip-norm=1",
            lambda p: (torch.nn.utils.clip_grad_value_(p, 0.5), torch.nn.utils.clip_grad_norm_(p, 1)),
        ),
    ],
)
def test_clipping_is_that_of_pytorch(options: str, clip: Any) -> None:
    weights = random_arrays(SHAPES, 2)
    make = lambda p: torch.optim.SGD(p, RATE, 0.9)  # noqa: E731
    require_close(trained(f"momentum=0.9,{options}", weights), trained_in_torch(make, weights, 5, clip), 1e-12)


def adaptive(kind: str, weights: Arrays, decay: float) -> Arrays:
    """LARS and LAMB of the papers in numpy."""
    weights = {name: array.copy() for name, array in weights.items()}
    first = {name: np.zeros_like(array) for name, array in weights.items()}
    second = {name: np.zeros_like(array) for name, array in weights.items()}
    shapes = {name: array.shape for name, array in weights.items()}
    for number, feeds in enumerate(feeds_of(shapes, 5), 1):
        for name, weight in weights.items():
            gradient = weight + feeds[f"{name}_slope"]
            size = np.linalg.norm(weight)
            if kind == "lars":
                direction = gradient + decay * weight
                ratio = 0.001 * size / (np.linalg.norm(gradient) + decay * size) if size else 1
                first[name] = 0.9 * first[name] + RATE * ratio * direction
                weights[name] = weight - first[name]
                continue
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.999 * second[name] + 0.001 * gradient**2
            corrected = first[name] / (1 - 0.9**number), second[name] / (1 - 0.999**number)
            direction = corrected[0] / (np.sqrt(corrected[1]) + 1e-6) + decay * weight
            ratio = size / np.linalg.norm(direction) if size else 1
            weights[name] = weight - RATE * ratio * direction
    return weights


@pytest.mark.parametrize("kind", ["lars", "lamb"])
@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_layer_wise_rates_are_those_of_the_papers(kind: str, decay: float) -> None:
    weights = random_arrays(SHAPES, 3) | {"zero": np.zeros((2, 2))}
    found = trained(f"kind={kind},weight-decay={decay}", weights)
    require_close(found, adaptive(kind, weights, decay), 1e-10)


def test_what_does_not_decay_is_chosen_by_name() -> None:
    weights = random_arrays({"a.weight": (2, 2), "a.bias": (2,), "b.weight": (2,)}, 4)
    plain, all_decay = trained("kind=sgd", weights, 1), trained("weight-decay=0.5", weights, 1)
    for skipped, patterns in (({"a.bias", "b.weight"}, "vectors"), ({"a.weight", "a.bias"}, "a.weight+*.bias")):
        found = trained(f"weight-decay=0.5,decay-skip={patterns}", weights, 1)
        for name in weights:
            np.testing.assert_array_equal(found[name], (plain if name in skipped else all_decay)[name])
    with pytest.raises(GraphoptError, match="no parameter matches '\\*.bais'"):
        optimized("decay-skip=*.bais", weights)


def test_zero_gradients_and_special_values() -> None:
    weights = {"w": np.float32([0, -0.0, 1e-40, np.inf, np.nan, 1])}
    for options in ("momentum=0.9", "kind=adam", "kind=rmsprop", "kind=adagrad", "kind=lamb", "kind=lars"):
        trainer = Trainer(optimized(options, weights))
        still = np.where(np.isfinite(weights["w"]), -weights["w"], 0)  # the gradient is zero
        trainer.step(lr=RATE, w_slope=still)
        finite = np.isfinite(weights["w"])
        np.testing.assert_array_equal(trainer.state["w"][finite], weights["w"][finite])
        assert np.isnan(trainer.state["w"][4])


def test_the_graph_after() -> None:
    model = optimized("momentum=0.9", random_arrays({"w": (2, 3)}, 0, np.float32))
    assert listing(model) == "\n".join((
        "loss[] = Identity(const[])",
        "w.gradient[2,3] = Add(const[2,3], w_slope)",
        "w.mul[2,3] = Mul(const[2,3], const[])",
        "w.momentum.next[2,3] = Add(w.mul, w.gradient)",
        "w.mul.1[2,3] = Mul(w.momentum.next, lr)",
        "w.next[2,3] = Sub(const[2,3], w.mul.1)",
    ))  # fmt: skip
    assert [value.name for value in model.graph.inputs] == ["w_slope", "lr"]
    assert [value.name for value in model.graph.outputs] == ["loss", "w.momentum.next", "w.next"]
    assert {str(v.name): (role(v), v.metadata_props[NEXT]) for v in states(model.graph)} == {
        "w": (Role.PARAMETER, "w.next"),
        "w.momentum": (Role.OPTIMIZER, "w.momentum.next"),
    }
    assert [node.metadata_props.get(PHASE) for node in model.graph] == [None, None, *["update"] * 4]


def test_an_update_stands_right_after_gradient_and_last_reader() -> None:
    model = optimized("kind=sgd", random_arrays({"v": (2,), "w": (2,)}, 0, np.float32))
    names = [node.outputs[0].name for node in model.graph]
    assert names == ["loss", "v.gradient", "v.mul", "v.next", "w.gradient", "w.mul", "w.next"]


def test_scalars_are_computed_once() -> None:
    few, many = (optimized("kind=adam", random_arrays({f"w{i}": (2,) for i in range(n)}, 0)) for n in (1, 5))
    scalars = [sum(node.outputs[0].shape == () for node in model.graph) for model in (few, many)]
    assert scalars[0] == scalars[1]
    each = (len(list(many.graph)) - len(list(few.graph))) / 4 - 1  # without the gradient itself
    assert each <= 13, "operators of an update"


def test_parameters_without_gradient_stay() -> None:
    model = slopes(random_arrays({"v": (2,), "w": (2,)}, 0, np.float32))
    del model.graph.initializers["v"].metadata_props[GRADIENT]
    result = Optimizer()(model)
    assert [refusal.node for refusal in result.refusals] == ["v"]
    assert NEXT not in model.graph.initializers["v"].metadata_props
    assert NEXT in model.graph.initializers["w"].metadata_props


def test_a_second_run_changes_nothing() -> None:
    model = optimized("kind=adam", random_arrays(SHAPES, 0))
    before = listing(model)
    result = Optimizer()(model)
    assert not result.modified
    assert listing(model) == before
    assert {refusal.reason for refusal in result.refusals} == {"it has an update already"}


def test_a_model_without_gradients_is_left_alone() -> None:
    result = Optimizer()(slopes({}))
    assert not result.modified
    assert result.notes == ("no parameter has a gradient to follow; run differentiate first",)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("kind=sgd,beta1=0.9", "the optimizer sgd has no beta1; there are"),
        ("kind=adam,momentum=0.9", "the optimizer adam has no momentum"),
        ("kind=adam,nesterov", "the optimizer adam has no nesterov"),
        ("kind=adam,beta2=1", "beta2 of the optimizer must be a number from 0 up to below 1, not 1"),
        ("momentum=-0.1", "momentum of the optimizer must be a number from 0 on"),
        ("nesterov", "nesterov needs a momentum above 0 and no dampening"),
        ("clip-norm=0", "clip-norm must be above 0, not 0"),
        ("clip-value=-1", "clip-value must be above 0"),
        ("kind=adm", "one of sgd, adagrad"),
        ("momentum=nan", "a finite number"),
    ],
)
def test_options_that_mean_nothing(options: str, sentence: str) -> None:
    with pytest.raises(GraphoptError, match=sentence):
        Pipeline.parse(f"optimizer{{{options}}}")


def test_the_spelling_comes_back() -> None:
    text = "optimizer{kind=adam,beta1=0.8,weight-decay=0.0,decay-skip=vectors}"
    assert str(Pipeline.parse(text)) == text


def test_broken_gradients_are_named() -> None:
    model = slopes(random_arrays({"w": (2,)}, 0))
    model.graph.initializers["w"].metadata_props[GRADIENT] = "nothing"
    with pytest.raises(ModelError, match="the gradient of w, nothing, is no output"):
        Optimizer()(model)
    model.graph.initializers["w"].metadata_props[GRADIENT] = "loss"
    with pytest.raises(ModelError, match="both must have one static shape"):
        Optimizer()(model)


def test_the_name_of_the_learning_rate() -> None:
    model = slopes(random_arrays({"w": (2,)}, 0, np.float32))
    model.graph.inputs[0].name = "lr"
    with pytest.raises(ModelError, match="the model has a value called lr"):
        Optimizer()(model)
    model.graph.inputs[0].name = "w_slope"
    inner = model.graph.outputs[1]
    inner.name = "lr"
    model.graph.initializers["w"].metadata_props[GRADIENT] = "lr"
    with pytest.raises(ModelError, match="the model has a value called lr"):
        Optimizer()(model)
