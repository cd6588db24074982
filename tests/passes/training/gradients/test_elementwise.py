"""Gradients of elementwise operators, against PyTorch, in float64 and float32, on random shapes that broadcast."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from graphopt.passes.training.gradients.table import RULES
from tests.helpers.draws import between, normal
from tests.helpers.gradients import build, gradients_of, require_torch

UNARY: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], float, float]] = {
    "Abs": (torch.abs, -2, 2),
    "Acos": (torch.acos, -0.9, 0.9),
    "Acosh": (torch.acosh, 1.1, 3),
    "Asin": (torch.asin, -0.9, 0.9),
    "Asinh": (torch.asinh, -3, 3),
    "Atan": (torch.atan, -3, 3),
    "Atanh": (torch.atanh, -0.9, 0.9),
    "Cos": (torch.cos, -3, 3),
    "Cosh": (torch.cosh, -2, 2),
    "Erf": (torch.erf, -2, 2),
    "Exp": (torch.exp, -3, 3),
    "Identity": (lambda x: x, -1, 1),
    "Log": (torch.log, 0.1, 3),
    "Neg": (torch.neg, -1, 1),
    "Reciprocal": (torch.reciprocal, 0.5, 2),
    "Sin": (torch.sin, -3, 3),
    "Sinh": (torch.sinh, -2, 2),
    "Sqrt": (torch.sqrt, 0.1, 3),
    "Tan": (torch.tan, -1, 1),
    "Relu": (torch.relu, -2, 2),
    "LeakyRelu <alpha = 0.3>": (lambda x: F.leaky_relu(x, 0.3), -2, 2),
    "LeakyRelu <alpha = -0.3>": (lambda x: torch.where(x > 0, x, -0.3 * x), -2, 2),
    "ThresholdedRelu <alpha = 0.5>": (lambda x: F.threshold(x, 0.5, 0.0), -2, 2),
    "Elu <alpha = 1.5>": (lambda x: F.elu(x, 1.5), -2, 2),
    "Celu <alpha = 1.5>": (lambda x: F.celu(x, 1.5), -2, 2),
    "Selu": (torch.selu, -2, 2),
    "Gelu": (F.gelu, -3, 3),
    'Gelu <approximate = "tanh">': (lambda x: F.gelu(x, approximate="tanh"), -3, 3),
    "Mish": (F.mish, -3, 3),
    "Softplus": (F.softplus, -3, 3),
    "Softsign": (F.softsign, -3, 3),
    "Sigmoid": (torch.sigmoid, -3, 3),
    "Tanh": (torch.tanh, -3, 3),
    "HardSigmoid <alpha = 0.2, beta = 0.5>": (lambda x: torch.clamp(0.2 * x + 0.5, 0, 1), -4, 4),
    "HardSwish": (F.hardswish, -4, 4),
}


BOTH = [(name, dtype) for name in UNARY for dtype in (np.float64, np.float32)]


@pytest.mark.parametrize(("operator", "dtype"), [case for case in BOTH if case != ("Celu <alpha = 1.5>", np.float64)])
def test_function_of_one_tensor(operator: str, dtype: type) -> None:
    """ONNX defines Celu for float32 alone."""
    twin, low, high = UNARY[operator]
    name, _, attributes = operator.partition(" ")
    x = between(0, low, high, 3, 5, dtype=dtype)
    require_torch(f"g (T[3,5] x) => (T[3,5] y) {{ y = {name} {attributes}(x) }}", {"x": x}, lambda x: twin(x))


BINARY: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Div": torch.div,
    "Pow": torch.pow,
    "Max": torch.maximum,
    "Min": torch.minimum,
    "Sum": torch.add,
    "Mean": lambda a, b: (a + b) / 2,
    "PRelu": lambda a, b: torch.where(a > 0, a, a * b),
}


@st.composite
def shapes_that_broadcast(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    whole = draw(st.lists(st.integers(1, 4), min_size=0, max_size=4))
    pair = []
    for _ in range(2):
        own = [draw(st.sampled_from([extent, 1])) for extent in whole]
        pair.append(tuple(own[draw(st.integers(0, len(own))) :]))
    return pair[0], pair[1]


@pytest.mark.parametrize("operator", BINARY)
@given(shapes=shapes_that_broadcast())
@settings(max_examples=6, deadline=None)
def test_function_of_two_tensors_that_broadcast(operator: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    left, right = shapes
    if operator == "PRelu":  # the slope alone is broadcast
        left = np.broadcast_shapes(*shapes)
    arrays = {"a": between(1, 0.5, 2, *left), "b": between(2, 0.5, 2, *right)}
    if operator == "PRelu":
        arrays["a"] = arrays["a"] - 1.2
    require_torch(f"g (T[1] a, T[1] b) => (T y) {{ y = {operator}(a, b) }}", arrays, BINARY[operator])


@pytest.mark.parametrize("operator", ["Max", "Min"])
def test_equal_extremes_share_the_gradient(operator: str) -> None:
    a = np.array([1.0, 2.0, 3.0])
    arrays = {"a": a, "b": np.array([1.0, 3.0, 3.0])}
    require_torch(f"g (T[3] a, T[3] b) => (T y) {{ y = {operator}(a, b) }}", arrays, BINARY[operator])


def test_power_of_zero() -> None:
    arrays = {"a": np.array([0.0, 0.0, 2.0, 0.0]), "b": np.array([2.0, 0.0, 0.0, 1.0])}
    require_torch("g (T[4] a, T[4] b) => (T y) { y = Pow(a, b) }", arrays, torch.pow)


@pytest.mark.parametrize(("low", "high"), [("low", "high"), ("", "high"), ("low", "")])
def test_clip_passes_what_is_between_its_bounds(low: str, high: str) -> None:
    """At a bound nothing passes, as in PyTorch's hardtanh, of which ReLU6 is one."""
    arrays = {"x": np.array([-2.0, -1.0, 0.0, 1.0, 2.0])}
    arrays |= {name: np.array(value) for name, value in (("low", -1.0), ("high", 1.0)) if name in (low, high)}
    inputs = ", ".join(f"T[1] {name}" for name in arrays)
    bounds = (-1.0 if low else -99.0, 1.0 if high else 99.0)
    frozen = tuple(name for name in arrays if name != "x")
    text = f"g ({inputs}) => (T y) {{ y = Clip(x, {low or ''}, {high}) }}" if high else (
        f"g ({inputs}) => (T y) {{ y = Clip(x, {low}) }}"
    )  # fmt: skip
    require_torch(text, arrays, lambda x, *_: F.hardtanh(x, *bounds), frozen)


def test_where_and_a_cast_there_and_back() -> None:
    arrays = {"c": np.array([True, False, True]), "a": normal(0, 2, 3), "b": normal(1, 3)}
    text = """g (bool[3] c, T[2,3] a, T[3] b) => (T y) {
        single = Cast <to = 1>(a)  back = CastLike(single, b)  y = Where(c, back, b) }"""
    require_torch(text, arrays, lambda c, a, b: torch.where(c, a.float().double(), b))


def test_a_value_used_twice_gets_both_gradients() -> None:
    text = "g (T[4] x) => (T y) { a = Sin(x)  b = Mul(a, a)  c = Add(b, x)  y = Mul(c, a) }"
    require_torch(text, {"x": normal(0, 4)}, lambda x: (x.sin() * x.sin() + x) * x.sin())


@pytest.mark.parametrize("operator", ["Relu", "Sigmoid", "Tanh", "Elu", "Gelu", "HardSwish", "Softplus"])
def test_gradients_of_special_values_are_those_of_pytorch(operator: str) -> None:
    """Infinities, denormals and both zeros; PyTorch lets NaN through a Relu, here it is not positive."""
    x = np.array([np.inf, -np.inf, 1e-310, -1e-310, 0.0, -0.0, 700.0, -700.0])
    model = build(f"g (T[8] x) => (T y) {{ y = {operator}(x) }}", {"x": x})
    tensor = torch.from_numpy(x).requires_grad_()
    weights = model.graph.initializers["loss.weights0"].const_value
    assert weights is not None
    twin = F.elu if operator == "Elu" else UNARY[operator][0]
    twin(tensor).backward(torch.from_numpy(weights.numpy().copy()))
    with np.errstate(all="ignore"):
        found, _ = gradients_of(model, {})
    assert tensor.grad is not None
    np.testing.assert_allclose(found["x"], tensor.grad.numpy(), rtol=1e-6, atol=1e-15)


def test_every_elementwise_rule_is_tested() -> None:
    tested = {name.partition(" ")[0] for name in (*UNARY, *BINARY)} | {"Clip", "Where", "Cast", "CastLike"}
    modules = ("elementwise", "activations")
    here = {name for name, entry in RULES.items() if entry.rule.__module__.rpartition(".")[2] in modules}
    assert here - tested == set()
