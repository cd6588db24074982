"""Evaluation: the inference model with other parameters, on batches that do not divide the samples."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
import torch

from graphopt.errors import GraphoptError
from graphopt.program.program import Port
from graphopt.training.data.dataset import Dataset, Signature
from graphopt.training.evaluate import Evaluator, cross_entropy
from tests.helpers import step_models
from tests.helpers.model_proto import text

GENERATOR = np.random.default_rng(3)
WEIGHTS = {"w": GENERATOR.standard_normal((64, 10)).astype(np.float32), "b": np.ones(10, np.float32)}


def _digits(count: int) -> Dataset:
    _, test = step_models.digits_data()
    return Dataset({name: each[:count] for name, each in test.items()}, step_models.digits_step().signature, "digits")


@pytest.mark.parametrize("batch", ["N", 1, 7, 50])
def test_the_batch_of_the_model_does_not_matter(batch: int | str) -> None:
    evaluator = Evaluator(
        step_models.softmax_inference(batch),
        frozenset({"w", "b", "momentum"}),
        output="scores",
        loss="cross-entropy",
        labels="labels",
        batch=16,
    )
    data = _digits(50)
    loss, accuracy = evaluator({**WEIGHTS, "momentum": np.zeros(1)}, data)
    scores = data.arrays["image"].reshape(50, 64) @ WEIGHTS["w"] + WEIGHTS["b"]
    labels = torch.from_numpy(data.arrays["labels"])
    assert loss == pytest.approx(float(torch.nn.functional.cross_entropy(torch.from_numpy(scores), labels)), rel=1e-5)
    assert accuracy == pytest.approx(float((scores.argmax(1) == labels.numpy()).mean()))


def test_constants_that_are_nodes_are_replaced_too() -> None:
    model = text(
        "g (float[N,1,8,8] image) => (float[N,10] scores)"
        "{ w = Constant <value = float[64,10] {" + ",".join(["0"] * 640) + "}> ()\n x = Flatten (image)\n"
        "scores = MatMul (x, w) }"
    )
    made = Evaluator(model, frozenset({"w"}), output="scores", loss="cross-entropy", labels="labels")
    zero = made({"w": np.zeros((64, 10), np.float32)}, _digits(20))
    assert zero[0] == pytest.approx(math.log(10))
    assert made({"w": WEIGHTS["w"]}, _digits(20)) != zero


def test_probabilities_are_taken_for_what_they_are() -> None:
    model = text("g (float[N,1,8,8] image, float[64,10] w) => (float[N,10] p)"
                 "{ x = Flatten (image)\n s = MatMul (x, w)\n p = Softmax (s) }")  # fmt: skip
    weights = model.graph.input.pop()
    model.graph.initializer.append(_tensor(weights.name))
    made = Evaluator(model, frozenset({"w"}), output="p", loss="cross-entropy", labels="labels")
    plain = Evaluator(
        step_models.softmax_inference(), frozenset({"w", "b"}), output="scores", loss="cross-entropy", labels="labels"
    )
    data = _digits(20)
    bare = {**WEIGHTS, "b": np.zeros(10, np.float32)}
    assert made(bare, data)[0] == pytest.approx(plain(bare, data)[0], rel=1e-5)


@pytest.mark.parametrize("kind", ["mse", "l1", "bce-with-logits", "none"])
def test_losses_of_numbers_are_pytorch_s(kind: str) -> None:
    model = text("g (float[N,3] x, float[3,2] w) => (float[N,2] z) { z = MatMul (x, w) }")
    model.graph.input.pop()
    weights = GENERATOR.standard_normal((3, 2)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    x, y = GENERATOR.standard_normal((9, 3)).astype(np.float32), (GENERATOR.random((9, 2)) > 0.5).astype(np.float32)
    ports = (Port("x", "float32", (4, 3)), Port("y", "float32", (4, 2)))
    data = Dataset({"x": x, "y": y}, Signature(ports, "y", {}), "d")
    loss, accuracy = Evaluator(model, frozenset({"w"}), output="z", loss=kind, labels="y", batch=4)(
        {"w": weights}, data
    )
    functions = {
        "mse": torch.nn.functional.mse_loss,
        "l1": torch.nn.functional.l1_loss,
        "bce-with-logits": torch.nn.functional.binary_cross_entropy_with_logits,
    }
    if kind == "none":
        assert math.isnan(loss)
        return
    assert loss == pytest.approx(float(functions[kind](torch.from_numpy(x @ weights), torch.from_numpy(y))), rel=1e-5)
    right = float((((x @ weights) > 0) == (y > 0.5)).mean())
    assert accuracy == pytest.approx(right) if kind == "bce-with-logits" else math.isnan(accuracy)


def _tensor(name: str) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(np.zeros((64, 10), np.float32), name)


def test_an_output_that_is_not_there() -> None:
    with pytest.raises(GraphoptError, match="no output 'logits' to compare with the labels; it has scores"):
        Evaluator(
            step_models.softmax_inference(), frozenset({"w"}), output="logits", loss="cross-entropy", labels="labels"
        )


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3), (2, 5, 3, 4)])
@pytest.mark.parametrize("ignored", [None, 2])
def test_cross_entropy_is_pytorch_s(shape: tuple[int, ...], ignored: int | None) -> None:
    scores = GENERATOR.standard_normal(shape) * 5
    labels = GENERATOR.integers(0, 5, (shape[0], *shape[2:]))
    total, right, count = cross_entropy(scores, labels, ignored)
    theirs = torch.nn.functional.cross_entropy(
        torch.from_numpy(scores), torch.from_numpy(labels), ignore_index=-100 if ignored is None else ignored
    )
    assert total / count == pytest.approx(float(theirs))
    counted = labels != ignored if ignored is not None else np.ones(labels.shape, bool)
    assert right == ((scores.argmax(1) == labels) & counted).sum()


def test_classes_of_language_models_are_last() -> None:
    scores = GENERATOR.standard_normal((2, 7, 11))
    labels = GENERATOR.integers(0, 11, (2, 7))
    total, _, count = cross_entropy(scores, labels)
    theirs = torch.nn.functional.cross_entropy(
        torch.from_numpy(scores.reshape(14, 11)), torch.from_numpy(labels.reshape(14))
    )
    assert total / count == pytest.approx(float(theirs))


def test_large_scores_do_not_overflow() -> None:
    total, _, _ = cross_entropy(np.array([[1e30, 0.0]], np.float32), np.array([0]))
    assert total == 0
