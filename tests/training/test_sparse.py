"""Training with a share of the weights, and in 16 bits: it learns, resumes bit by bit, and exports dense weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

import graphopt
from graphopt.errors import GraphoptError
from graphopt.training.build import StepOptions, pipeline
from graphopt.training.sparse import SparseTraining
from tests.helpers import step_models
from tests.helpers.text_models import parse

TRAIN, TEST = step_models.digits_data()
SMALL = {name: each[:320] for name, each in TRAIN.items()}


def network() -> ir.Model:
    model = parse(
        "g (float[32,1,8,8] image, float[64,32] v, float[32] c, float[32,10] w) => (float[32,10] scores)"
        "{ i = Flatten(image)  p = MatMul(i, v)  q = Add(p, c)  r = Relu(q)  scores = MatMul(r, w) }",
        {"v": (64, 32), "c": (32,), "w": (32, 10)},
    )
    for name in "vw":
        value = model.graph.initializers[name]
        value.const_value = ir.tensor(value.const_value.numpy() / 6, name=name)
    return model


def session(**options: Any) -> graphopt.TrainingSession:
    settings = {"engine": "onnxruntime", "lr": 0.05, "threads": 1, "optimizer": "adam{weight-decay=0.01}", **options}
    return graphopt.TrainingSession(network(), **settings)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "fp16{master=false}"])
def test_a_share_of_the_weights_learns(precision: str, tmp_path: Path) -> None:
    training = session(sparse="density=0.25,granularity=block:16x1,every=40", precision=precision, lr=0.01)
    history = training.fit(TRAIN, 6, test=TEST)
    assert history.epochs[-1].test_accuracy > 0.85
    assert training.parameters()["v"].shape == (64, 32)
    training.export(tmp_path / "trained.onnx")
    weights = {
        each.name: numpy_helper.to_array(each) for each in onnx.load(tmp_path / "trained.onnx").graph.initializer
    }
    assert weights["v"].dtype == np.float32
    blocks = weights["v"].reshape(64, 2, 16).any(axis=2)
    assert 16 < np.count_nonzero(blocks) <= 64 * 2 // 4
    assert np.count_nonzero(weights["w"]) > 300, "a small layer stays dense"


def test_groups_move_after_so_many_updates() -> None:
    still, moving = session(sparse="density=0.25"), session(sparse="density=0.25,every=5,prune-fraction=0.5")
    places = still.state()["v.places"]
    for training in (still, moving):
        training.fit(SMALL, 1)
    np.testing.assert_array_equal(still.state()["v.places"], places)
    assert not np.array_equal(moving.state()["v.places"], places)


def test_it_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "sparse": "density=0.25,every=3", "precision": "fp16", "optimizer": "adam{rounding=stochastic}"
    }  # fmt: skip
    whole = session(**options)
    whole.fit(SMALL, 3)
    first = session(**options)
    first.fit(SMALL, 1, checkpoint=tmp_path)
    again = session(**options)
    again.fit(SMALL, 3, checkpoint=tmp_path, resume=True)
    state, expected = again.state(), whole.state()
    assert all(np.array_equal(state[name], array) for name, array in expected.items())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"precision": "bf16"}, "loss{kind=cross-entropy},mixed-precision{to=bf16},differentiate,optimizer{kind=sgd}"),
        (
            {"precision": "fp16", "sparse_options": {"density": "0.1"}},
            "loss{kind=cross-entropy},sparse-training{density=0.1},mixed-precision{to=fp16},differentiate,"
            "optimizer{kind=sgd}",
        ),
        (
            {"precision": "fp16", "precision_options": {"master": "false"}, "sparse_options": {}, "micro_batches": 2},
            "loss{kind=cross-entropy},mixed-precision{to=fp16,master=false},sparse-training{},differentiate,"
            "optimizer{kind=sgd},microbatch{count=2}",
        ),
    ],
)
def test_the_passes(options: dict[str, Any], expected: str) -> None:
    assert pipeline(StepOptions(**options)) == expected


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("density", "cannot read the sparse option 'density'"),
        ("density=", "cannot read the sparse option 'density='"),
        ("density=0.1,every=x", "a number of the sparse options cannot be read"),
        ("every=-1", "cannot move every -1 updates"),
        ("prune-fraction=2", "between 0 and 1, not 2"),
    ],
)
def test_spellings_that_mean_nothing(text: str, sentence: str) -> None:
    with pytest.raises(GraphoptError, match=sentence):
        SparseTraining.parse(text)


def test_options_of_the_pass_are_checked_by_it() -> None:
    with pytest.raises(GraphoptError, match="pass sparse-training has no option densty; did you mean density"):
        session(sparse="densty=0.1")
    with pytest.raises(GraphoptError, match="must be one of fp32"):
        session(precision="fp8")
