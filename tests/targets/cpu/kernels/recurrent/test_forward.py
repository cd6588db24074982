"""The recurrence of LSTM, GRU and RNN: every cut of the work against ONNX Runtime, on poisoned memory."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.runtime.devices import host
from graphopt.targets.cpu import build
from graphopt.targets.cpu.kernels.recurrent import rnn, sums
from graphopt.targets.cpu.machine import LEVELS, CpuMachine

few = settings(deadline=None, max_examples=20, derandomize=True)

DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}
CELLS = ("LSTM", "GRU", "GRU after", "RNN")


def numbers(*shape: int, scale: float = 1.0) -> Any:
    return (np.random.default_rng([7, *shape]).standard_normal(shape) * scale).astype(np.float32)


def check(
    lab: Any,
    cell: str,
    steps: int,
    batch: int,
    inputs: int,
    hidden: int,
    direction: str = "forward",
    states: bool = True,
) -> Any:
    """The node with biases and initial states (and peepholes, for an LSTM that is asked for them)."""
    d = DIRECTIONS[direction]
    name, _, after = cell.partition(" ")
    gates = rnn.GATES[name]
    # A recurrence amplifies rounding where its weights are large: at this scale states neither grow nor saturate.
    scale = 1 / np.sqrt(hidden)
    constants = {
        "w": numbers(d, gates * hidden, inputs, scale=1 / np.sqrt(inputs)),
        "r": numbers(d, gates * hidden, hidden, scale=scale),
        "b": numbers(d, 2 * gates * hidden),
    }
    feeds = {"x": numbers(steps, batch, inputs)}
    operands, outputs = "x, w, r, b", ["y", "h"]
    if states:
        feeds["h0"] = numbers(d, batch, hidden)
        operands += ', "", h0'
    if name == "LSTM":
        outputs.append("c")
        if states:
            feeds["c0"] = numbers(1, d, batch, hidden)[0]
            constants["p"] = numbers(d, 3 * hidden)
            operands += ", c0, p"
    attributes = f'hidden_size = {hidden}, direction = "{direction}"'
    attributes += ", linear_before_reset = 1" if after else ""
    body = f"{', '.join(outputs)} = {name} <{attributes}> ({operands})"
    return lab.check(lab.model(body, feeds, constants, outputs), feeds)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    ("direction", "steps", "batch", "inputs", "hidden"),
    [
        ("forward", 1, 1, 1, 1),
        ("reverse", 7, 1, 5, 16),
        ("bidirectional", 6, 1, 33, 37),
        ("forward", 5, 3, 20, 32),
        ("bidirectional", 4, 19, 8, 21),
        ("forward", 3, 1, 16, 200),
        ("reverse", 3, 8, 16, 130),
    ],
)
def test_cells(lab: Any, cell: str, direction: str, steps: int, batch: int, inputs: int, hidden: int) -> None:
    lowered = check(lab, cell, steps, batch, inputs, hidden, direction)
    assert len(lowered.calls) == 2, "the product of the inputs, and the recurrence"


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("hidden", [24, 176])
def test_cells_on_every_level(any_lab: Any, cell: str, batch: int, hidden: int) -> None:
    check(any_lab, cell, 5, batch, 12, hidden, "bidirectional")


def reference(cell: str, x: Any, w: Any, r: Any, b: Any) -> Any:
    """Y[T, 1, B, H] of the operators' formulas, with zero states and default activations."""

    def sigmoid(v: Any) -> Any:
        return 1 / (1 + np.exp(-v))

    name, _, after = cell.partition(" ")
    gates, hidden = rnn.GATES[name], r.shape[-1]
    wb, rb = b[0].reshape(2, gates, hidden)
    h = c = np.zeros((x.shape[1], hidden))
    result = []
    for row in x:
        p = (row @ w[0].T).reshape(-1, gates, hidden) + wb
        q = (h @ r[0].T).reshape(-1, gates, hidden) + rb
        s = p + q
        if name == "LSTM":
            c = sigmoid(s[:, 2]) * c + sigmoid(s[:, 0]) * np.tanh(s[:, 3])
            h = sigmoid(s[:, 1]) * np.tanh(c)
        elif name == "GRU":
            z, reset = sigmoid(s[:, 0]), sigmoid(s[:, 1])
            inner = reset * q[:, 2] if after else (reset * h) @ r[0, 2 * hidden :].T + rb[2]
            h = (1 - z) * np.tanh(p[:, 2] + inner) + z * h
        else:
            h = np.tanh(s[:, 0])
        result.append(h[None])
    return np.array(result)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("batch", "hidden"), [(1, 13), (1, 136), (3, 40)])
def test_double_precision(lab: Any, cell: str, batch: int, hidden: int) -> None:
    """ONNX Runtime has no such LSTM: the formulas in numpy are the reference."""
    name, _, after = cell.partition(" ")
    gates = rnn.GATES[name]
    x, b = numbers(5, batch, 7), numbers(1, 2 * gates * hidden)
    w, r = numbers(1, gates * hidden, 7), numbers(1, gates * hidden, hidden, scale=1 / np.sqrt(hidden))
    single = {"x": x, "w": w, "r": r, "b": b}
    attributes = f"hidden_size = {hidden}{', linear_before_reset = 1' if after else ''}"
    model = lab.model(f"y = {name} <{attributes}> (x, w, r, b)", single)
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.type = ir.TensorType(ir.DataType.DOUBLE)
    feeds = {key: array.astype(np.float64) for key, array in single.items()}
    actual = lab.execute(lab.lower(model), feeds)["y"]
    np.testing.assert_allclose(actual, reference(cell, **feeds), rtol=1e-12, atol=1e-13)


@given(
    cell=st.sampled_from(CELLS),
    direction=st.sampled_from(sorted(DIRECTIONS)),
    steps=st.integers(1, 6),
    batch=st.integers(1, 20),
    inputs=st.integers(1, 20),
    hidden=st.integers(1, 140),
    states=st.booleans(),
)
@few
def test_any_shape(
    lab: Any, cell: str, direction: str, steps: int, batch: int, inputs: int, hidden: int, states: bool
) -> None:
    check(lab, cell, steps, batch, inputs, hidden, direction, states=states)


def planned(cell: str = "LSTM", steps: int = 9, batch: int = 1, hidden: int = 48, **options: Any) -> rnn.Layer:
    machine = CpuMachine(LEVELS["avx512"], 2)
    directions = options.pop("directions", 1)
    defaults = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
    shape = (steps, batch, hidden)
    return rnn.plan(cell, shape, directions, machine, "float32", activations=defaults[cell], **options)


def test_small_layers_need_no_second_thread_and_large_ones_share_each_step() -> None:
    assert not planned(hidden=64).shared
    assert planned(hidden=512).shared
    assert planned(hidden=256, directions=2).shared
    # Rows of a batch are independent: with R in the second-level cache each thread takes some and nobody waits.
    assert not planned(hidden=96, batch=64).shared
    assert planned(hidden=512, batch=64).shared


def test_one_block_is_never_shared() -> None:
    assert not planned("RNN", hidden=16, batch=10_000).shared


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("batch", [1, 2, 5, 7, 64])
def test_accumulators_fit_the_registers(cell: str, batch: int) -> None:
    for hidden in (16, 100, 512):
        layer = planned(cell, batch=batch, hidden=hidden)
        assert layer.rows * layer.gates * layer.vectors + layer.gates * layer.vectors < 32
        assert layer.blocks * layer.units >= hidden > (layer.blocks - 1) * layer.units


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("batch", [1, 7])
def test_both_cuts_of_the_work(lab: Any, monkeypatch: pytest.MonkeyPatch, cell: str, shared: bool, batch: int) -> None:
    """Whatever the heuristic would choose, on one thread and on several, the numbers are the same."""
    cut = rnn.plan

    def forced(*args: Any, **options: Any) -> rnn.Layer:
        return dataclasses.replace(cut(*args, **options), shared=shared)

    monkeypatch.setattr(rnn, "plan", forced)
    for _ in range(3 if shared else 1):
        check(lab, cell, 6, batch, 9, 77, "bidirectional")
    monkeypatch.setattr(host, "available_cpus", lambda: 1)  # what the lab runs on
    check(lab, cell, 6, batch, 9, 77)


def test_a_long_recurrence_is_the_same_every_time(lab: Any) -> None:
    """A missing barrier would show as numbers that change from run to run."""
    w, r = numbers(1, 4 * 192, 8, scale=0.3), numbers(1, 4 * 192, 192, scale=0.08)
    feeds = {"x": numbers(300, 1, 8)}
    lowered = lab.lower(lab.model("y = LSTM <hidden_size = 192> (x, w, r)", feeds, {"w": w, "r": r}))
    first = lab.execute(lowered, feeds)["y"]
    for _ in range(10):
        np.testing.assert_array_equal(lab.execute(lowered, feeds)["y"], first)


def test_products_are_vector_code(lab: Any) -> None:
    """Each weight is read once, by the multiply-add that uses it."""
    if lab.target.cpu.level.name == "x86-64":
        pytest.skip("this host has no fused multiply-add")
    w, r = numbers(1, 4 * 256, 8), numbers(1, 4 * 256, 256)
    feeds = {"x": numbers(3, 1, 8)}
    lowered = lab.lower(lab.model("y = LSTM <hidden_size = 256> (x, w, r)", feeds, {"w": w, "r": r}))
    (symbol,) = [call.symbol for call in lowered.calls if "lstm" in call.symbol]
    code = build.compile_functions({symbol: lowered.functions[symbol]}, lab.target.cpu).mod.inspect_source("asm")
    register = "%zmm" if lab.target.cpu.lanes() == 16 else "%ymm"
    from_memory = [line for line in code.splitlines() if "vfmadd231ps" in line and "(" in line and register in line]
    assert len(from_memory) >= sums.UNROLL * 4
