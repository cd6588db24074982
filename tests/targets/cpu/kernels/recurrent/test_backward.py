"""LSTM and GRU of a training step, forward and back through time, against the bodies of the functions."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.runtime.devices import host
from graphopt.targets.cpu.kernels.recurrent import backward, rnn
from graphopt.targets.cpu.machine import LEVELS, CpuMachine
from graphopt.verify.oracle import run_onnxruntime
from tests.helpers.lab import Lab

few = settings(deadline=None, max_examples=5, derandomize=True)
cells = pytest.mark.parametrize("cell", ["LSTM", "GRU"])

FORWARD = {
    "LSTM": "y, gates, inner = graphopt.LSTMTraining(x, w, r, b, h0, c0)",
    "GRU": "y, gates, inner = graphopt.GRUTraining(x, w, r, b, h0)",
}
BACKWARD = {
    "LSTM": "dg, dh0, dc0 = graphopt.LSTMGradient(dy, gates, inner, c0, r, dh, dc)",
    "GRU": "dg, du, dh0 = graphopt.GRUGradient(dy, gates, inner, y, h0, r, dh)",
}
RESULTS = {"LSTM": ("y", "gates", "inner", "dg", "dh0", "dc0"), "GRU": ("y", "gates", "inner", "dg", "du", "dh0")}


def numbers(*shape: int, scale: float = 1.0) -> Any:
    return (np.random.default_rng([17, *shape]).standard_normal(shape) * scale).astype(np.float32)


def operands(cell: str, steps: int, batch: int, inputs: int, hidden: int) -> dict[str, Any]:
    """Random operands of a layer at a scale where its states neither grow nor saturate."""
    gates = rnn.GATES[cell]
    states = numbers(4, batch, hidden)
    feeds = {
        "x": numbers(steps, batch, inputs),
        "w": numbers(gates * hidden, inputs, scale=1 / np.sqrt(inputs)),
        "r": numbers(gates * hidden, hidden, scale=1 / np.sqrt(hidden)),
        "b": numbers(2 * gates * hidden),
        "h0": states[0],
        "dy": numbers(1, steps, batch, hidden)[0],
        "dh": states[1],
    }
    return feeds | ({"c0": states[2], "dc": states[3]} if cell == "LSTM" else {})


def step(lab: Lab, cell: str, feeds: dict[str, Any]) -> ir.Model:
    """Forward, then backward on what it kept; every operand is known at run time only."""
    return lab.model(f"{FORWARD[cell]}\n{BACKWARD[cell]}", feeds, outputs=RESULTS[cell])


def check(lab: Lab, cell: str, steps: int, batch: int, inputs: int, hidden: int) -> None:
    """The kernels agree with the bodies of both functions."""
    feeds = operands(cell, steps, batch, inputs, hidden)
    lab.check(step(lab, cell, feeds), feeds, rtol=1e-4)


@cells
@pytest.mark.parametrize(
    ("steps", "batch", "inputs", "hidden"),
    [(1, 1, 1, 1), (3, 1, 16, 200), (4, 33, 9, 130)],
)
def test_cells(lab: Lab, cell: str, steps: int, batch: int, inputs: int, hidden: int) -> None:
    check(lab, cell, steps, batch, inputs, hidden)


@cells
@pytest.mark.parametrize(("batch", "hidden"), [(1, 24), (5, 32)])
def test_cells_on_every_level(any_lab: Lab, cell: str, batch: int, hidden: int) -> None:
    check(any_lab, cell, 4, batch, 12, hidden)


@given(
    cell=st.sampled_from(["LSTM", "GRU"]),
    steps=st.integers(1, 5),
    batch=st.integers(1, 20),
    inputs=st.integers(1, 20),
    hidden=st.integers(1, 140),
)
@few
def test_any_shape(lab: Lab, cell: str, steps: int, batch: int, inputs: int, hidden: int) -> None:
    check(lab, cell, steps, batch, inputs, hidden)


@cells
def test_double_precision(lab: Lab, cell: str) -> None:
    feeds = {name: array.astype(np.float64) for name, array in operands(cell, 4, 3, 5, 21).items()}
    lab.check(step(lab, cell, feeds), feeds)


@cells
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("batch", "rows"), [(1, 1), (7, 3)])
def test_both_cuts_of_the_work(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, cell: str, shared: bool, batch: int, rows: int
) -> None:
    """Whatever the plan would be, a thread takes units of each step or rows of all steps: the bits are the same."""
    cut = backward.plan

    def forced(*args: Any) -> backward.Plan:
        return dataclasses.replace(cut(*args), shared=shared, rows=rows)

    monkeypatch.setattr(backward, "plan", forced)
    feeds = operands(cell, 30, batch, 3, 77)
    lowered = lab.check(step(lab, cell, feeds), feeds, rtol=1e-3)
    first = lab.execute(lowered, feeds)
    monkeypatch.setattr(host, "available_cpus", lambda: 1)  # what the lab runs on
    for name, array in lab.execute(lowered, feeds).items():
        np.testing.assert_array_equal(array, first[name])


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
@cells
def test_special_gradients_reach_earlier_steps_of_their_row_alone(lab: Lab, cell: str, value: float) -> None:
    feeds = operands(cell, 5, 4, 3, 40)
    feeds["dy"][2, 1, 6] = value
    model = step(lab, cell, feeds)
    found, expected = lab.execute(lab.lower(model), feeds), run_onnxruntime(model, feeds)
    finite = np.isfinite(found["dg"]).all(-1)
    assert finite[3:].all()
    assert finite[:, [0, 2, 3]].all()
    if value != 3e38:
        assert not finite[:3, 1].any()
        assert (np.isfinite(expected["dg"]).all(-1) == finite).all()


@cells
def test_saturated_gates_and_denormals(lab: Lab, cell: str) -> None:
    feeds = operands(cell, 3, 2, 4, 35)
    feeds["b"][:35], feeds["b"][35:70] = 200.0, -200.0
    feeds["dy"] *= np.float32(1e-39)
    feeds["x"][0, 0] = np.inf
    model = step(lab, cell, feeds)
    found, expected = lab.execute(lab.lower(model), feeds), run_onnxruntime(model, feeds)
    for name in RESULTS[cell]:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-6)


@cells
@pytest.mark.parametrize("empty", ["steps", "batch"])
def test_nothing_to_compute_has_no_kernel(lab: Lab, cell: str, empty: str) -> None:
    feeds = operands(cell, 2, 2, 3, 4)
    model = step(lab, cell, feeds)
    for value in (*model.graph.inputs, *(v for node in model.graph for v in node.outputs)):
        shape = list(value.shape or ())
        if empty == "steps" and len(shape) == 3:
            shape[0] = 0
        if empty == "batch" and shape[-2:-1] == [2]:
            shape[-2] = 0
        value.shape = ir.Shape(shape)
    assert all(lab.target.supports(node, model.opset_imports) for node in model.graph)


@pytest.mark.parametrize("level", ["avx512", "avx2", "x86-64"])
@pytest.mark.parametrize("batch", [1, 7, 64])
@pytest.mark.parametrize("hidden", [1, 100, 512, 1024])
def test_sums_fit_the_registers(level: str, batch: int, hidden: int) -> None:
    found = backward.plan("LSTM", (5, batch, hidden), CpuMachine(LEVELS[level], 2), "float32")
    assert found.rows * found.vectors + found.vectors < LEVELS[level].registers
    assert found.blocks * found.units >= hidden > (found.blocks - 1) * found.units
    assert found.rows <= batch


def test_threads_meet_only_where_the_weights_leave_the_cache() -> None:
    def shared(batch: int, hidden: int) -> bool:
        return backward.plan("LSTM", (5, batch, hidden), CpuMachine(LEVELS["avx512"], 2), "float32").shared

    assert shared(1, 512)
    assert shared(64, 512)
    assert not shared(64, 96)
    assert not shared(1, 64)
    assert not shared(10_000, 16)
