"""Updates of several runs: gradients add up, the learning rate and the history count updates."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import graphopt
from graphopt.errors import FeedError, GraphoptError
from graphopt.frontend.shapes import infer_shapes
from graphopt.pipeline.pipeline import Pipeline
from graphopt.training.build import from_step_model
from tests.helpers import step_models

GENERATOR = np.random.default_rng(5)
X = GENERATOR.standard_normal((40, 3)).astype(np.float32)
DATA = {"x": X, "y": (X @ [[1.0], [-2.0], [0.5]]).astype(np.float32)}
TEXT = """
sums (float[4,3] x, float[4,1] y, float lr, bool apply, float[3,1] w, float[3,1] s)
    => (float loss, float[3,1] w_next, float[3,1] s_next)
{
    p = MatMul (x, w)
    d = Sub (p, y)
    q = Mul (d, d)
    loss = ReduceMean <keepdims = 0> (q)
    xt = Transpose <perm = [1, 0]> (x)
    g = MatMul (xt, d)
    share = Constant <value_float = 0.25> ()
    dw = Mul (g, share)
    total = Add (s, dw)
    u = Mul (total, lr)
    moved = Sub (w, u)
    zero = Sub (s, s)
    w_next = Where (apply, moved, w)
    s_next = Where (apply, zero, total)
}
"""
"""Two runs of 4 samples make one update: the sum of 2 d / 8."""


def _sums() -> ir.Model:
    zeros = np.zeros((3, 1), np.float32)
    return step_models.step_model(TEXT, {"w": ("parameter", "w_next", zeros), "s": ("gradient", "s_next", zeros)})


def _session(model: ir.Model, micro_batches: int = 1, **options: object) -> graphopt.TrainingSession:
    step = from_step_model(model)
    return graphopt.TrainingSession(
        step, engine="onnxruntime", lr=0.1, batch=8, micro_batches=micro_batches, **options  # type: ignore[arg-type]
    )  # fmt: skip


def test_two_halves_are_one_whole() -> None:
    halves, whole = _session(_sums(), 2), _session(step_models.linear(8))
    for session in (halves, whole):
        session.fit(DATA, 3)
    assert halves.batch == whole.batch == 8
    assert len(halves.history.steps) == len(whole.history.steps) == 15
    assert halves.position.step == 15
    np.testing.assert_allclose(halves.state()["w"], whole.state()["w"], rtol=1e-4)
    np.testing.assert_allclose(
        [step.loss for step in halves.history.steps], [step.loss for step in whole.history.steps], rtol=1e-4
    )


def test_a_step_takes_the_whole_batch() -> None:
    halves, whole = _session(_sums(), 2), _session(step_models.linear(8))
    batch = {name: each[:8] for name, each in DATA.items()}
    assert halves.step(batch).loss == pytest.approx(whole.step(batch).loss, rel=1e-5)
    np.testing.assert_allclose(halves.state()["w"], whole.state()["w"], rtol=1e-5)


def test_the_growing_batch_makes_fewer_updates() -> None:
    session = _session(_sums(), 1, schedule="growing-batch{every=1,times=2,most=4}")
    session.fit(DATA, 4)
    updates = [sum(step.epoch == epoch for step in session.history.steps) for epoch in (1, 2, 3, 4)]
    assert updates == [10, 5, 2, 2]


def test_the_pass_of_the_pipeline_gives_such_a_model() -> None:
    model = step_models.linear()
    for node in model.graph:
        if node.outputs[0].name in ("s", "w_next"):
            node.metadata_props["graphopt.phase"] = "update"
    infer_shapes(model)
    Pipeline.parse("microbatch{count=2}").run(model)
    halves, whole = _session(model, 2), _session(step_models.linear(8))
    for session in (halves, whole):
        session.fit(DATA, 3)
    np.testing.assert_allclose(halves.state()["w"], whole.state()["w"], rtol=1e-4)


def test_a_model_without_micro_batches_is_refused() -> None:
    with pytest.raises(GraphoptError, match="updates in every run: it has no input 'apply'"):
        _session(step_models.linear(), 2).fit(DATA, 1)


def test_data_that_fill_no_update() -> None:
    few = {name: each[:5] for name, each in DATA.items()}
    with pytest.raises(FeedError, match="the data fill no update of 2 batches"):
        _session(_sums(), 2).fit(few, 1)
