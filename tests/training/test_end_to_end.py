"""From an inference model to a trained one through the passes: BatchNormalization, Dropout, a frozen layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import graphopt
from graphopt.errors import GraphoptError
from tests.helpers import step_models
from tests.helpers.model_proto import text

TRAIN, TEST = step_models.digits_data()
SHAPES = {"k": (8, 1, 3, 3), "s": (8,), "b": (8,), "mean": (8,), "var": (8,), "w": (512, 10)}
GRAPH = """
network (float[N,1,8,8] image, float[8,1,3,3] k, float[8] s, float[8] b, float[8] mean, float[8] var, float[512,10] w)
    => (float[N,10] scores)
{
    c = Conv <pads = [1, 1, 1, 1]> (image, k)
    n = BatchNormalization <momentum = 0.9> (c, s, b, mean, var)
    r = Relu (n)
    f = Flatten (r)
    d = Dropout (f)
    scores = MatMul (d, w)
}
"""


def _network() -> onnx.ModelProto:
    model = text(GRAPH)
    generator = np.random.default_rng(0)
    del model.graph.input[1:]
    for name, shape in SHAPES.items():
        numbers = np.ones(shape) if name in ("s", "var") else np.zeros(shape)
        numbers = 0.1 * generator.standard_normal(shape) if name in ("k", "w") else numbers
        model.graph.initializer.append(onnx.numpy_helper.from_array(numbers.astype(np.float32), name))
    return model


def _session(**options: Any) -> graphopt.TrainingSession:
    settings = {"engine": "onnxruntime", "lr": 0.05, "momentum": 0.9, "threads": 1, **options}
    return graphopt.TrainingSession(_network(), **settings)


def _initializers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}


def test_it_learns_and_comes_back_as_an_inference_model(tmp_path: Path) -> None:
    session = _session()
    history = session.fit(TRAIN, 3, test=TEST)
    assert history.epochs[-1].test_accuracy > 0.94
    before, after = _initializers(_network()), _initializers(session.export(tmp_path / "t.onnx"))
    assert all(not np.array_equal(before[name], after[name]) for name in SHAPES)  # the running statistics too
    (scores,) = onnxruntime.InferenceSession(tmp_path / "t.onnx").run(None, {"image": TEST["image"]})
    assert float((scores.argmax(1) == TEST["labels"]).mean()) == pytest.approx(history.epochs[-1].test_accuracy)
    nodes = [node.op_type for node in onnx.load(tmp_path / "t.onnx").graph.node]
    assert nodes == [node.op_type for node in _network().graph.node]


def test_dropout_goes_on_with_the_same_masks(tmp_path: Path) -> None:
    whole = _session(seed=2)
    whole.fit(TRAIN, 2)
    first, second = _session(seed=2), _session(seed=2)
    first.fit(TRAIN, 1, checkpoint=tmp_path / "run")
    second.fit(TRAIN, 2, checkpoint=tmp_path / "run", resume=True)
    assert repr(whole.history) == repr(second.history)
    assert all(array.tobytes() == second.state()[name].tobytes() for name, array in whole.state().items())


def test_the_compiled_engine_draws_the_same_curve() -> None:
    compiled, reference = _session(engine="compiled"), _session()
    small = {name: each[:192] for name, each in TRAIN.items()}
    for session in (compiled, reference):
        session.fit(small, 2)
    losses = [[step.loss for step in session.history.steps] for session in (compiled, reference)]
    np.testing.assert_allclose(*losses, rtol=1e-3)
    assert compiled.memory["arena"] > 0


def test_what_is_frozen_keeps_its_bytes(tmp_path: Path) -> None:
    session = _session(freeze=("k", "w"))
    session.fit({name: each[:64] for name, each in TRAIN.items()}, 1)
    before, after = _initializers(_network()), _initializers(session.export(tmp_path / "t.onnx"))
    assert {name for name in SHAPES if before[name].tobytes() == after[name].tobytes()} == {"k", "w"}
    with pytest.raises(GraphoptError, match="--freeze conv. matches no initializer"):
        _session(freeze=("conv*",))


def test_micro_batches_and_growing_ones() -> None:
    session = _session(batch=32, micro_batches=4, schedule="growing-batch{every=1,times=2}")
    session.fit({name: each[:128] for name, each in TRAIN.items()}, 2)
    assert [step.epoch for step in session.history.steps] == [1, 1, 1, 1, 2, 2]
    assert session.step_model.signature.batch == 8


def test_an_unknown_optimizer_or_loss_names_those_there_are() -> None:
    with pytest.raises(GraphoptError, match="option kind of pass optimizer is 'adamm'; it must be one of sgd"):
        _session(optimizer="adamm")
    with pytest.raises(GraphoptError, match="option kind of pass loss is 'hinge'"):
        _session(loss="hinge")
