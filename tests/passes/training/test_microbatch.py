"""Several micro-batches and one update: the same weights as one step on all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.errors import GraphoptError, ModelError
from graphopt.graph.state import NEXT, Role, role, states
from graphopt.passes import Microbatch
from graphopt.pipeline.observe import Check
from graphopt.pipeline.pipeline import Event, Pipeline
from tests.helpers.steps import Trainer, random_arrays, slopes, with_gradients
from tests.helpers.text_models import listing, parse

RATE = 0.0625


def regression(rows: int, passes: str) -> ir.Model:
    """Linear regression on `rows` examples: the loss is the mean of squares over examples and outputs."""
    text = f"""g (double[{rows},3] x, double[3,2] w, double[2] b, double[{rows},2] t)
        => (double loss, double[3,2] w_gradient, double[2] b_gradient)
        <int64[1] rows = {{0}}, double share = {{{1 / rows}}}> {{
        p = MatMul(x, w)  q = Add(p, b)  d = Sub(q, t)  s = Mul(d, d)  loss = ReduceMean <keepdims = 0> (s)
        e = Mul(d, share)  xt = Transpose(x)  w_gradient = MatMul(xt, e)
        b_gradient = ReduceSum <keepdims = 0> (e, rows) }}"""
    model = with_gradients(parse(text, {"w": (3, 2), "b": (2,)}), ["w", "b"])
    result = Pipeline.parse(passes).run(model, [Check()])
    assert result is not None
    return model


def batches(count: int, rows: int) -> list[dict[str, np.ndarray]]:
    return [random_arrays({"x": (rows, 3), "t": (rows, 2)}, seed) for seed in range(count)]


def joined(pieces: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in ("x", "t")}


OPTIMIZERS = ["optimizer{momentum=0.9,weight-decay=0.1}", "optimizer{kind=adamw}", "optimizer{kind=lamb,clip-norm=0.1}"]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("select", ["if", "where"])
@pytest.mark.parametrize("count", [2, 3])
def test_micro_batches_equal_the_whole_batch(optimizer: str, select: str, count: int) -> None:
    whole = Trainer(regression(4 * count, optimizer))
    pieces = Trainer(regression(4, f"{optimizer},microbatch{{count={count},select={select}}}"))
    given = batches(3 * count, 4)
    for start in range(0, len(given), count):
        whole.step(lr=RATE, **joined(given[start : start + count]))
        for number, piece in enumerate(given[start : start + count], 1):
            before = dict(pieces.state)
            pieces.step(lr=RATE, apply=number == count, **piece)
            for name in whole.state:  # parameters and the optimizer's state, which wait for the last one
                assert number == count or np.array_equal(pieces.state[name], before[name]), name
    for name, array in whole.state.items():
        np.testing.assert_allclose(pieces.state[name], array, rtol=1e-10, atol=1e-12, err_msg=name)


def test_they_are_what_pytorch_accumulates() -> None:
    trainer = Trainer(regression(4, "optimizer{kind=adam},microbatch{count=2}"))
    w, b = (torch.nn.Parameter(torch.tensor(trainer.state[name].copy())) for name in "wb")
    optimizer = torch.optim.Adam([w, b], RATE)
    for number, piece in enumerate(batches(6, 4)):
        # the gradient above is that of half the sum of squares for each example
        loss = ((torch.tensor(piece["x"]) @ w + b - torch.tensor(piece["t"])) ** 2).sum() / 4 / 2
        (loss / 2).backward()
        if number % 2:
            optimizer.step()
            optimizer.zero_grad()
        trainer.step(lr=RATE, apply=bool(number % 2), **piece)
    np.testing.assert_allclose(trainer.state["w"], w.detach().numpy(), rtol=1e-10)
    np.testing.assert_allclose(trainer.state["b"], b.detach().numpy(), rtol=1e-10)


@settings(max_examples=6, deadline=None)
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=3))
def test_any_number_of_pieces_is_averaged(sizes: list[int]) -> None:
    """`count` is only what is usual: the rest of an epoch, or a batch that grows, counts in full."""
    trainer = Trainer(regression(2, "optimizer,microbatch{count=4}"))
    for seed, size in enumerate(sizes):
        pieces = batches(size, 2)
        whole = Trainer(regression(2 * size, "optimizer"))
        whole.state.update(w=trainer.state["w"], b=trainer.state["b"])
        whole.step(lr=RATE / (seed + 1), **joined(pieces))
        for number, piece in enumerate(pieces, 1):
            trainer.step(lr=RATE / (seed + 1), apply=number == size, **piece)
        np.testing.assert_allclose(trainer.state["w"], whole.state["w"], rtol=1e-10)


def test_a_loss_that_is_a_sum() -> None:
    def trained(reduction: str) -> np.ndarray:
        model = slopes({"w": np.zeros(2)})
        Pipeline.parse(f"optimizer,microbatch{{count=2,reduction={reduction}}}").run(model)
        trainer = Trainer(model)
        for number in range(2):
            trainer.step(lr=1, apply=number == 1, w_slope=np.float64([1, 2]))
        return trainer.state["w"]

    np.testing.assert_array_equal(trained("mean"), [-1, -2])
    np.testing.assert_array_equal(trained("sum"), [-2, -4])


def test_an_overflow_of_one_batch_does_not_stay() -> None:
    """Sums begin anew even if they were infinite, and what is not applied does not reach the weights."""
    model = slopes({"w": np.ones(1, np.float32)})
    Pipeline.parse("optimizer,microbatch{count=2}").run(model)
    trainer = Trainer(model)
    trainer.step(lr=1, apply=False, w_slope=np.float32([np.inf]))
    assert trainer.state["w"] == 1
    trainer.step(lr=0, apply=True, w_slope=np.float32([np.nan]))
    trainer.state["w"] = np.ones(1, np.float32)
    trainer.step(lr=1, apply=True, w_slope=np.float32([1]))
    assert trainer.state["w"] == -1


def test_the_graph_after() -> None:
    model = slopes({"w": np.ones((2, 3), np.float32)})
    assert Pipeline.parse("optimizer{momentum=0.9},microbatch{count=4}").run(model)
    *others, gated = model.graph
    assert [(str(node.outputs[0].name), node.op_type) for node in others] == [
        ("pieces.equal", "Equal"),
        ("pieces.add", "Add"),
        ("graphopt.pieces.next", "Where"),
        ("loss", "Identity"),
        ("w.gradient", "Add"),
        ("w.where", "Where"),
        ("w.mul.2", "Mul"),
        ("w.sum.next", "Add"),
    ]
    branches = [gated.attributes[name].as_graph() for name in ("then_branch", "else_branch")]
    assert [[node.op_type for node in branch] for branch in branches] == [
        ["Cast", "Div", "Cast", "Mul", "Mul", "Add", "Mul", "Sub"],  # count / pieces, its product, the update
        ["Identity", "Identity"],
    ]
    assert [value.name for value in gated.outputs] == ["w.next", "w.momentum.next"]
    assert [value.name for value in model.graph.outputs] == [
        *("loss", "w.momentum.next", "w.next", "w.sum.next", "graphopt.pieces.next")
    ]


@pytest.mark.parametrize(("half_sums", "dtype"), [(False, np.float32), (True, np.float16)])
def test_sums_of_16_bit_gradients(half_sums: bool, dtype: Any) -> None:
    model = slopes({"w": np.zeros(3, np.float16)})
    Pipeline.parse(f"optimizer,microbatch{{count=2,half-sums={str(half_sums).lower()}}}").run(model, [Check()])
    (total,) = [value for value in states(model.graph) if role(value) is Role.GRADIENT]
    assert total.name == "w.sum"
    trainer = Trainer(model)
    assert trainer.state[str(total.name)].dtype == dtype
    for number in range(2):
        trainer.step(lr=1, apply=number == 1, w_slope=np.float16([1, 40000, 2**-14]))
    np.testing.assert_array_equal(trainer.state["w"], np.float16([-1, -40000, -(2**-14)]))


def test_one_is_none_and_a_second_run_changes_nothing() -> None:
    model = slopes({"w": np.ones(2)})
    Pipeline.parse("optimizer").run(model)
    assert not Microbatch(count=1)(model).modified
    assert Microbatch(count=2)(model).modified
    before = listing(model)
    assert not Microbatch(count=2)(model).modified
    assert listing(model) == before
    assert all(value.metadata_props[NEXT] for value in states(model.graph))


def test_what_it_needs() -> None:
    with pytest.raises(ModelError, match="run optimizer before it"):
        Microbatch(count=2)(slopes({"w": np.ones(2)}))
    with pytest.raises(GraphoptError, match="must be from 1 on, not 0"):
        Microbatch(count=0)
    model = slopes({"w": np.ones(2)})
    Pipeline.parse("optimizer").run(model)
    model.graph.inputs[0].name = "apply"
    with pytest.raises(ModelError, match="a value called apply"):
        Microbatch(count=2)(model)
    Check()(Event(1, "microbatch", model, None))
