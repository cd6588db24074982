"""Parameters and optimizer state of 16 bits: computed in float32, rounded to nearest or at random."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

import graphopt
from graphopt.graph.state import Role, role, states
from graphopt.pipeline.observe import Check
from graphopt.pipeline.pipeline import Pipeline
from graphopt.program.program import NativeSegment
from tests.helpers.steps import Trainer, slopes


def optimized(weights: dict[str, np.ndarray], options: str) -> ir.Model:
    model = slopes(weights)
    Pipeline.parse(f"optimizer{{{options}}}").run(model, [Check()])
    return model


@pytest.mark.parametrize("options", ["momentum=0.9,weight-decay=0.1", "kind=adam"])
def test_the_update_is_that_of_float32_rounded_once(options: str) -> None:
    sixteenths = np.random.default_rng(0).integers(-32, 33, (2, 200)) / 16  # their sums are exact
    weights, slope = sixteenths.astype(np.float16)
    trainer, wide = (Trainer(optimized({"w": weights.astype(kind)}, options)) for kind in (np.float16, np.float32))
    trainer.step(lr=0.1, w_slope=slope)
    wide.step(lr=0.1, w_slope=slope.astype(np.float32))
    np.testing.assert_array_equal(trainer.state["w"], wide.state["w"].astype(np.float16))


@pytest.mark.parametrize(("more", "dtype"), [("", np.float32), (",half-state", np.float16)])
def test_state_of_the_optimizer(more: str, dtype: type) -> None:
    model = optimized({"w": np.ones(3, np.float16), "v": np.ones(2, np.float32)}, f"kind=adam{more}")
    found = {str(value.name): value.dtype.numpy() for value in states(model.graph) if role(value) is Role.OPTIMIZER}
    assert found == {"w.mean": dtype, "w.squares": dtype, "v.mean": np.float32, "v.squares": np.float32}


def test_small_steps_are_lost_to_nearest_rounding_and_not_in_the_mean() -> None:
    weights = {"w": np.ones(4000, np.float16), "v": np.ones(4000, np.float16)}
    lost, kept = (Trainer(optimized(weights, f"rounding={how}")) for how in ("nearest", "stochastic"))
    still = np.zeros(4000, np.float16)
    for trainer in (lost, kept):
        for _ in range(20):
            trainer.step(lr=2e-5, w_slope=still, v_slope=still)  # a twelfth of the distance to the next number
    assert (lost.state["w"] == 1).all()
    mean = float(kept.state["w"].astype(np.float64).mean())
    assert mean == pytest.approx((1 - 2e-5) ** 20, abs=4e-5)
    assert not np.array_equal(kept.state["w"], kept.state["v"]), "each parameter draws its own numbers"
    again = Trainer(optimized(weights, "rounding=stochastic"))
    for _ in range(20):
        again.step(lr=2e-5, w_slope=still, v_slope=still)
    np.testing.assert_array_equal(again.state["w"], kept.state["w"])


def test_a_program_rounds_at_random_in_bfloat16() -> None:
    model = optimized({"w": np.ones((50, 60), ml_dtypes.bfloat16)}, "kind=adam,rounding=stochastic,half-state")
    artifact = graphopt.compile(model, costs="roofline", verify="off")
    segments = [segment for stage in artifact.program.stages for segment in stage.segments]
    assert all(isinstance(segment, NativeSegment) for segment in segments)
    session = artifact.session()
    for _ in range(10):
        session.run({"w_slope": np.zeros((50, 60), ml_dtypes.bfloat16), "lr": np.asarray(np.float32(1e-4))})
    weights = session.state()["w"].astype(np.float64)
    assert set(weights.ravel().tolist()) <= {1 - k * 2.0**-8 for k in range(4)}
    assert weights.mean() == pytest.approx(1 - 10e-4, abs=2e-4)
    assert session.state()["graphopt.updates"] == 10
