"""A scaled loss: gradients are scaled back before they are clipped, and an overflow skips the update."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.errors import ModelError
from graphopt.graph.edit import Editor
from graphopt.graph.state import LOSS, NEXT, Role, role, states
from graphopt.passes.training.loss_scale import CLEAN, SCALE, scale_loss
from graphopt.pipeline.observe import Check
from graphopt.pipeline.pipeline import Pipeline
from tests.helpers.steps import Arrays, Trainer, feeds_of, random_arrays, slopes

SHAPES = {"w": (3, 2), "b": (2,)}


def scaled(weights: Arrays, passes: str, fixed: float | None = None) -> ir.Model:
    """`slopes` with the scale in its gradients, as differentiate leaves it, after `passes`."""
    model = slopes(weights)
    scale_loss(model, "test", fixed)
    editor = Editor(model, "test")
    for output in list(model.graph.outputs):
        if str(output.name).endswith(".gradient"):
            name, output.name = output.name, f"{output.name}.plain"
            factor, kind = model.graph.initializers[SCALE], output.dtype
            cast = editor.insert(
                None, "Cast", [factor], {"to": kind.value}, shape=(), dtype=kind, name="cast", output="cast"
            )
            new = editor.insert(
                None, "Mul", [output, cast], shape=output.shape, dtype=kind, name=f"{name}.scale", output=f"{name}.s"
            )
            model.graph.outputs[list(model.graph.outputs).index(output)] = new
            new.name = name
    Pipeline.parse(passes).run(model, [Check()])
    return model


def steps(trainer: Trainer, count: int = 5, **more: Any) -> None:
    for feeds in feeds_of(SHAPES, count, np.float32):
        trainer.step(lr=0.0625, **feeds, **more)


@pytest.mark.parametrize("fixed", [None, 1024.0])
@pytest.mark.parametrize("select", ["if", "where"])
@pytest.mark.parametrize("options", ["momentum=0.9", "kind=adam,clip-norm=0.5", "clip-value=0.25,clip-norm=0.5"])
def test_a_scale_changes_no_bit(options: str, select: str, fixed: float | None) -> None:
    """It is a power of two, and float32 has room for it."""
    weights = random_arrays(SHAPES, 0, np.float32)
    plain = Trainer(scaled_not(weights, options))
    found = Trainer(scaled(weights, f"optimizer{{{options},select={select}}}", fixed))
    for trainer in (plain, found):
        steps(trainer)
    for name, array in plain.state.items():
        if "clip-norm" in options:
            np.testing.assert_allclose(found.state[name], array, rtol=1e-6)
        else:
            np.testing.assert_array_equal(found.state[name], array)


def scaled_not(weights: Arrays, options: str) -> ir.Model:
    model = slopes(weights)
    Pipeline.parse(f"optimizer{{{options}}}").run(model)
    return model


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan, 3e38])
@pytest.mark.parametrize("options", ["kind=adam", "kind=adam,clip-norm=1", "kind=adam,clip-value=1", "select=where"])
def test_an_overflow_changes_nothing_but_the_scale(options: str, bad: float) -> None:
    trainer = Trainer(scaled(random_arrays(SHAPES, 0, np.float32), f"optimizer{{{options}}}"))
    steps(trainer, 2)
    before = dict(trainer.state)
    assert before[CLEAN] == 2
    trainer.step(lr=0.1, w_slope=np.zeros((3, 2), np.float32), b_slope=np.float32([0, bad]))
    assert trainer.state.pop(SCALE) == before.pop(SCALE) / 2 == 2.0**15
    assert trainer.state.pop(CLEAN) == before.pop(CLEAN) - 2 == 0
    for name, array in before.items():
        np.testing.assert_array_equal(trainer.state[name], array)


@pytest.mark.parametrize(
    ("scale", "clean", "overflow", "expected"),
    [
        (2.0**16, 0, False, (2.0**16, 1)),
        (2.0**16, 1998, False, (2.0**16, 1999)),
        (2.0**16, 1999, False, (2.0**17, 0)),
        (2.0**24, 1999, False, (2.0**24, 0)),
        (2.0**16, 1999, True, (2.0**15, 0)),
        (1.0, 3, True, (1.0, 0)),
    ],
)
def test_the_scale_follows_its_rule(scale: float, clean: int, overflow: bool, expected: tuple[float, int]) -> None:
    trainer = Trainer(scaled({"w": np.zeros(1, np.float32)}, "optimizer"))
    trainer.state.update({SCALE: np.asarray(scale, np.float32), CLEAN: np.asarray(clean)})
    trainer.step(lr=1, w_slope=np.float32([np.inf if overflow else 0]))
    assert (float(trainer.state[SCALE]), int(trainer.state[CLEAN])) == expected


@pytest.mark.parametrize("select", ["if", "where"])
def test_with_micro_batches_all_pieces_have_one_scale(select: str) -> None:
    """One that overflows skips the update of all, and the scale changes only then."""
    passes = f"optimizer{{kind=adam,select={select}}},microbatch{{count=2,select={select}}}"
    trainer = Trainer(scaled({"w": np.float32([1])}, passes))
    for slope, apply, scale in ((np.inf, False, 2.0**16), (0, True, 2.0**15), (0, False, 2.0**15), (0, True, 2.0**15)):
        before = trainer.state["w"]
        trainer.step(lr=0.1, apply=apply, w_slope=np.float32([slope]))
        assert trainer.state[SCALE] == scale
    assert trainer.state[CLEAN] == 1
    assert trainer.state["w"] == pytest.approx(before - 0.1), "the first step of Adam is the learning rate"


def test_gradients_of_16_bits() -> None:
    """A gradient of 2^-30, which fp16 does not have, arrives in float32."""
    model = scaled({"w": np.zeros(1, np.float16)}, "optimizer{momentum=0.5}")
    assert model.graph.initializers["w.momentum"].dtype == ir.DataType.FLOAT
    trainer = Trainer(model)
    trainer.step(lr=1, w_slope=np.float16([2**-20]))
    assert trainer.state["w.momentum"] == np.float32(2**-20)


def test_the_loss_is_the_one_before_it_was_scaled() -> None:
    model = scaled({"w": np.float32([1])}, "optimizer")
    assert model.graph.metadata_props[LOSS] == "loss"
    assert [output.name for output in model.graph.outputs] == [*("loss", "w.next", f"{SCALE}.next", f"{CLEAN}.next")]
    assert all(NEXT in value.metadata_props for value in states(model.graph))
    assert {str(v.name) for v in states(model.graph) if role(v) is Role.COUNTER} == {SCALE, CLEAN}


def test_a_model_without_loss() -> None:
    model = slopes({"w": np.float32([1])})
    del model.graph.metadata_props[LOSS]
    with pytest.raises(ModelError, match="run loss before mixed-precision"):
        scale_loss(model, "test", None)
