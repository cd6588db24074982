"""The pass loss: which losses fit which outputs, against PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch.nn import functional as F

from graphopt.errors import DifferentiationError
from graphopt.graph import state
from graphopt.passes import Loss
from graphopt.passes.training.loss import Kind, Reduction
from graphopt.verify.oracle import run_onnxruntime
from tests.helpers.draws import normal
from tests.helpers.text_models import parse


def model_of(shape: tuple[int, ...], body: str = "y = Identity(x)") -> ir.Model:
    extents = ",".join(map(str, shape))
    return parse(f"g (float[{extents}] x) => (float[{extents}] y) {{ {body} }}")


def run(model: ir.Model, x: Any, labels: Any) -> dict[str, Any]:
    return run_onnxruntime(model, {"x": x, "labels": labels})


@pytest.mark.parametrize("reduction", list(Reduction))
@pytest.mark.parametrize(
    ("shape", "axis", "body"),
    [
        ((5, 4), 1, "y = Identity(x)"),
        ((5, 4), 1, "y = Softmax(x)"),
        ((5, 4), 1, "y = LogSoftmax(x)"),
        ((2, 3, 4), 2, "y = Identity(x)"),
        ((2, 4, 3), 1, "y = Softmax <axis = 1>(x)"),
        ((2, 4, 3, 2), 1, "y = Identity(x)"),
        ((2, 3, 2, 4), 3, "y = Softmax(x)"),
    ],
)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(shape: tuple[int, ...], axis: int, body: str, reduction: Reduction, smoothing: float) -> None:
    """The axis of classes is the last of [N, C] and [N, T, C], else 1, or that of a Softmax at the end."""
    model = model_of(shape, body)
    assert Loss(reduction=reduction, smoothing=smoothing)(model).modified
    x = normal(0, *shape, dtype=np.float32)
    labels = np.random.default_rng(1).integers(0, 4, [extent for place, extent in enumerate(shape) if place != axis])
    labels[0] = -100
    outputs = run(model, x, labels)
    logits, targets = torch.from_numpy(x).movedim(axis, 1), torch.from_numpy(labels)
    expected = F.cross_entropy(logits, targets, reduction=reduction.value, label_smoothing=smoothing)
    np.testing.assert_allclose(outputs["loss"], expected.numpy(), rtol=1e-5)
    assert outputs["correct"] == (logits.argmax(1) == targets).sum().item()
    assert outputs["correct"].dtype == np.int64
    props = model.graph.metadata_props
    assert (props[state.LOSS], props[state.LABELS], props[state.CORRECT]) == ("loss", "labels", "correct")
    assert [value.name for value in model.graph.outputs] == ["y", "loss", "correct"]
    assert not Loss()(model).modified


def test_an_axis_of_classes_that_is_given() -> None:
    model = model_of((2, 4, 3))
    Loss(axis=1)(model)
    x, labels = normal(0, 2, 4, 3, dtype=np.float32), np.array([[0, 1, 2], [3, 2, 1]])
    expected = F.cross_entropy(torch.from_numpy(x), torch.from_numpy(labels))
    np.testing.assert_allclose(run(model, x, labels)["loss"], expected.numpy(), rtol=1e-5)


def test_softmax_of_an_old_opset_stands_between_reshapes() -> None:
    """And [N, C, 1, 1], of a global pool, has one label for each sample."""
    text = """g (float[3,4,1,1] x) => (float[3,4,1,1] y) {
        f = Flatten(x)  p = Softmax(f)  s = Constant <value_ints = [3, 4, 1, 1]>()  y = Reshape(p, s) }"""
    model = parse(text)
    Loss()(model)
    x, labels = 200 * normal(0, 3, 4, 1, 1, dtype=np.float32), np.array([0, 2, 3])
    outputs = run(model, x, labels)
    expected = F.cross_entropy(torch.from_numpy(x).flatten(1), torch.from_numpy(labels))
    np.testing.assert_allclose(outputs["loss"], expected.numpy(), rtol=1e-5)
    assert outputs["correct"] == (x[:, :, 0, 0].argmax(1) == labels).sum()


@pytest.mark.parametrize(
    ("kind", "twin"), [(Kind.MSE, F.mse_loss), (Kind.L1, F.l1_loss), (Kind.BCE, F.binary_cross_entropy_with_logits)]
)
@pytest.mark.parametrize("reduction", list(Reduction))
def test_losses_of_numbers(kind: Kind, twin: Any, reduction: Reduction) -> None:
    model = model_of((3, 2, 2))
    Loss(kind=kind, reduction=reduction)(model)
    x = 30 * normal(0, 3, 2, 2, dtype=np.float32)
    labels = np.random.default_rng(1).random((3, 2, 2), np.float32)
    expected = twin(torch.from_numpy(x), torch.from_numpy(labels), reduction=reduction.value)
    np.testing.assert_allclose(run(model, x, labels)["loss"], expected.numpy(), rtol=1e-5)


def test_a_sigmoid_at_the_end_is_left_out() -> None:
    """Its result would be 1 exactly, and the loss infinite."""
    model = model_of((2, 2), "y = Sigmoid(x)")
    Loss(kind=Kind.BCE)(model)
    outputs = run(model, np.full((2, 2), 40, np.float32), np.zeros((2, 2), np.float32))
    np.testing.assert_allclose(outputs["loss"], 40, rtol=1e-6)
    np.testing.assert_array_equal(outputs["y"], np.ones((2, 2)))


def test_likelihood_of_log_probabilities() -> None:
    model = model_of((3, 4), "y = LogSoftmax(x)")
    Loss(kind=Kind.NLL)(model)
    x, labels = normal(0, 3, 4, dtype=np.float32), np.array([1, 0, 3])
    expected = F.cross_entropy(torch.from_numpy(x), torch.from_numpy(labels))
    np.testing.assert_allclose(run(model, x, labels)["loss"], expected.numpy(), rtol=1e-5)


def test_half_precision_is_summed_in_float32() -> None:
    model = parse("g (float16[2,3] x) => (float16[2,3] y) { y = Identity(x) }")
    Loss()(model)
    loss = next(value for value in model.graph.outputs if value.name == "loss")
    assert loss.dtype == ir.DataType.FLOAT


def test_a_loss_of_the_models_own() -> None:
    model = parse("g (float[4] x) => (float[4] y, float z) { y = Neg(x)  z = ReduceSum <keepdims = 0>(x) }")
    Loss(kind=Kind.NONE, output="z")(model)
    assert model.graph.metadata_props[state.LOSS] == "z"
    with pytest.raises(DifferentiationError, match=r"the output y is no scalar loss, its shape is \[4\]"):
        Loss(kind=Kind.NONE)(model_of((4,)))


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (model_of((4,)), {}, r"y has shape \[4\], which has no axis of classes; cross-entropy needs \[N, C\]"),
        (model_of((4, 2)), {"output": "z"}, "the model has no output z; it has y"),
        (model_of((4, 2)), {"labels": "x"}, "has a value x already; name the labels otherwise"),
        (model_of((4, 2)), {"smoothing": 1.5}, "smoothing is 1.5; it must be from 0 to below 1"),
        (model_of((4, 2)), {"axis": -2}, "axis 0 of the output y holds the samples"),
        (parse("g (int64[2] x) => (int64[2] y) { y = Neg(x) }"), {}, "the output y is INT64 and has no loss"),
    ],
)
def test_outputs_that_do_not_fit(model: ir.Model, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DifferentiationError, match=message):
        Loss(**options)(model)
    assert state.LOSS not in model.graph.metadata_props
