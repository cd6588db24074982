"""Whole steps, differentiated: five of them as PyTorch makes them, in float32, in 16 bits, in pieces, and sparse."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from graphopt.graph.state import LOSS, Role, mark, role, states
from graphopt.passes.training.sparse.parameter import sparse_parameters
from graphopt.passes.training.sparse.reallocate import Reallocation, reallocate
from graphopt.pipeline.observe import Check
from graphopt.pipeline.pipeline import Pipeline
from tests.helpers.steps import Trainer
from tests.helpers.text_models import parse

SHAPES = {"v": (32, 64), "c": (64,), "w": (64, 10)}
RATE = 0.0625


def classifier(rows: int, passes: str) -> ir.Model:
    model = parse(
        f"""g (float[{rows},32] x, float[32,64] v, float[64] c, float[64,10] w) => (float[{rows},10] y) {{
        p = MatMul(x, v)  q = Add(p, c)  r = Relu(q)  y = MatMul(r, w) }}""",
        SHAPES,
    )
    for name in SHAPES:
        value = model.graph.initializers[name]
        value.const_value = ir.tensor(value.const_value.numpy() / 8, name=name)
        mark(value, Role.PARAMETER)
    Pipeline.parse(passes).run(model, [Check()])
    return model


def batches(count: int, rows: int) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(0)
    centers = generator.standard_normal((10, 32))
    found = []
    for _ in range(count):
        labels = generator.integers(0, 10, rows)
        x = centers[labels] + generator.standard_normal((rows, 32)) / 2
        found.append({"x": x.astype(np.float32), "labels": labels})
    return found


def trained_in_torch(make: Any, given: list[dict[str, np.ndarray]], masks: dict[str, Any], clip: float = 0) -> Any:
    weights = {name: value.const_value.numpy() for name, value in classifier(4, "loss").graph.initializers.items()}
    parameters = {name: torch.nn.Parameter(torch.tensor(weights[name] * masks.get(name, 1))) for name in SHAPES}
    optimizer = make(list(parameters.values()))
    losses = []
    for batch in given:
        hidden = torch.relu(torch.tensor(batch["x"]) @ parameters["v"] + parameters["c"])
        loss = torch.nn.functional.cross_entropy(hidden @ parameters["w"], torch.tensor(batch["labels"]))
        optimizer.zero_grad()
        loss.backward()
        for name, mask in masks.items():
            parameters[name].grad *= torch.tensor(mask)
        if clip:
            torch.nn.utils.clip_grad_norm_(list(parameters.values()), clip)
        optimizer.step()
        losses.append(loss.item())
    return losses, {name: parameter.detach().numpy() for name, parameter in parameters.items()}


def trained(model: ir.Model, given: list[dict[str, np.ndarray]]) -> tuple[list[float], Trainer]:
    trainer = Trainer(model)
    return [float(trainer.step(lr=RATE, **batch)["loss"]) for batch in given], trainer


OPTIMIZERS = {
    "momentum=0.9,nesterov,weight-decay=0.01": lambda p: torch.optim.SGD(
        p, RATE, 0.9, weight_decay=0.01, nesterov=True
    ),
    "kind=adamw,clip-norm=0.5": lambda p: torch.optim.AdamW(p, RATE),
    "kind=rmsprop": lambda p: torch.optim.RMSprop(p, RATE),
}


@pytest.mark.parametrize("options", OPTIMIZERS)
def test_five_steps(options: str) -> None:
    given = batches(5, 16)
    losses, trainer = trained(classifier(16, f"loss,differentiate,optimizer{{{options}}}"), given)
    expected, weights = trained_in_torch(OPTIMIZERS[options], given, {}, 0.5 * ("clip" in options))
    np.testing.assert_allclose(losses, expected, rtol=1e-4, atol=1e-5)
    for name, array in weights.items():
        np.testing.assert_allclose(trainer.state[name], array, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("options", ["to=fp16", "to=fp16,master=false", "to=fp16,loss-scale=512"])
def test_five_steps_in_16_bits(options: str) -> None:
    given = batches(5, 16)
    passes = f"loss,mixed-precision{{{options}}},differentiate,optimizer{{momentum=0.9,clip-norm=0.5}}"
    losses, trainer = trained(classifier(16, passes), given)
    expected, weights = trained_in_torch(lambda p: torch.optim.SGD(p, RATE, 0.9), given, {}, 0.5)
    np.testing.assert_allclose(losses, expected, rtol=0.01)
    for name, array in weights.items():
        np.testing.assert_allclose(trainer.state[name].astype(np.float32), array, rtol=0.02, atol=0.005)


@pytest.mark.parametrize("mixed", ["", "mixed-precision{to=fp16},"])
def test_pieces_of_a_batch(mixed: str) -> None:
    whole, pieces = batches(3, 16), []
    for batch in whole:
        pieces += [{name: array[start : start + 4] for name, array in batch.items()} for start in range(0, 16, 4)]
    trainer = Trainer(classifier(4, f"loss,{mixed}differentiate,optimizer{{kind=adam}},microbatch{{count=4}}"))
    for number, piece in enumerate(pieces):
        trainer.step(lr=RATE, apply=number % 4 == 3, **piece)
    _, weights = trained_in_torch(lambda p: torch.optim.Adam(p, RATE), whole, {})
    close = 0.02 if mixed else 1e-4
    for name, array in weights.items():
        error = np.abs(trainer.state[name] - array)
        assert np.quantile(error, 0.99) < close, name  # Adam divides gradients by their size, also tiny ones


@pytest.mark.parametrize("granularity", ["element", "block:16x1"])
def test_sparse_weights_train_as_masked_ones_and_their_state_is_small(granularity: str) -> None:
    sparse = f"sparse-training{{density=0.25,granularity={granularity}}}"
    model = classifier(16, f"loss,{sparse},differentiate,optimizer{{momentum=0.9}}")
    parameters = sparse_parameters(model.graph)
    assert [each.name for each in parameters] == ["v"], "w has fewer weights"
    given = batches(5, 16)
    trainer = Trainer(model)
    (each,) = parameters
    mask = each.dense(np.ones_like(trainer.state[each.values]), trainer.state[each.places])
    for batch in given:
        trainer.step(lr=RATE, **batch)
    _, weights = trained_in_torch(lambda p: torch.optim.SGD(p, RATE, 0.9), given, {"v": mask})
    dense = each.dense(trainer.state[each.values], trainer.state[each.places])
    np.testing.assert_allclose(dense, weights["v"], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(trainer.state["w"], weights["w"], rtol=1e-3, atol=1e-4)
    sizes = {str(value.name): value.shape.numpy() for value in states(model.graph) if role(value) is Role.OPTIMIZER}
    assert np.prod(sizes["v.values.momentum"]) == 32 * 64 / 4


def test_patterns_are_those_of_the_dense_names() -> None:
    options = "weight-decay=0.5,decay-skip=[vw]"
    sparse = "sparse-training{density=0.25}"
    skipped, plain = (
        trained(classifier(16, f"loss,{sparse},differentiate,optimizer{{{each}}}"), batches(1, 16))[1].state
        for each in (options, "kind=sgd")
    )
    np.testing.assert_array_equal(skipped["v.values"], plain["v.values"])
    assert not np.array_equal(skipped["c"], plain["c"])


def test_groups_move_between_steps_and_the_loss_falls_on() -> None:
    model = classifier(
        32, "loss,sparse-training{density=0.125,granularity=block:16x1},differentiate,optimizer{kind=adam}"
    )
    trainer, options = Trainer(model), Reallocation(0.3)
    along = [str(value.name) for value in states(model.graph) if role(value) is Role.OPTIMIZER]
    losses = []
    for number, batch in enumerate(batches(60, 32)):
        losses.append(float(trainer.step(lr=0.01, **batch)["loss"]))
        if number % 10 == 9:
            options, moved = reallocate(sparse_parameters(model.graph), trainer.state, along, options)
            assert moved["v"][0] == moved["v"][1] > 0
    assert model.graph.metadata_props[LOSS] == "loss"
    assert np.mean(losses[-5:]) < 0.2 * losses[0]
