"""Gradients of LSTM and GRU, against PyTorch: all directions, with and without states and biases."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from numpy.typing import NDArray

from graphopt.errors import DifferentiationError
from tests.helpers.draws import normal
from tests.helpers.gradients import build, gradients_of, require_torch

STEPS, BATCH, INPUTS, HIDDEN = 4, 3, 5, 2
PLACES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2)}
"""The gates of PyTorch (i, f, u, o; r, z, u) by their places in ONNX (i, o, f, u; z, r, u)."""


def arrays_of(kind: str, directions: int, bias: bool, states: bool) -> dict[str, NDArray[Any]]:
    gates = len(PLACES[kind])
    arrays = {
        "x": normal(0, STEPS, BATCH, INPUTS),
        "w": normal(1, directions, gates * HIDDEN, INPUTS),
        "r": normal(2, directions, gates * HIDDEN, HIDDEN),
    }
    if bias:
        arrays["b"] = normal(3, directions, 2 * gates * HIDDEN)
    if states:
        arrays["h"] = normal(4, directions, BATCH, HIDDEN)
        if kind == "LSTM":
            arrays["c"] = normal(5, directions, BATCH, HIDDEN)
    return arrays


def as_torch(kind: str, tensor: torch.Tensor) -> torch.Tensor:
    gates = len(PLACES[kind])
    return tensor.reshape(gates, HIDDEN, -1)[list(PLACES[kind])].reshape(tensor.shape)


def twin_of(kind: str, names: list[str], directions: int, reverse: bool) -> Any:
    def twin(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = dict(zip(names, tensors, strict=True))
        x, gates = given["x"], len(PLACES[kind])
        weights = []
        for place in range(directions):
            weights += [as_torch(kind, given["w"][place]), as_torch(kind, given["r"][place])]
            if "b" in given:
                parts = given["b"][place].split(gates * HIDDEN)
                weights += [as_torch(kind, part) for part in parts]
        zeros = x.new_zeros(directions, BATCH, HIDDEN)
        start = given.get("h", zeros)
        flags = ("b" in given, 1, 0.0, False, directions == 2, False)
        source = x.flip(0) if reverse else x
        if kind == "LSTM":
            y, *last = torch.lstm(source, (start, given.get("c", zeros)), weights, *flags)
        else:
            y, *last = torch.gru(source, start, weights, *flags)
        y = y.flip(0) if reverse else y
        wide = y.reshape(STEPS, BATCH, directions, HIDDEN).permute(0, 2, 1, 3)
        return wide, *last

    return twin


CASES = [
    ("forward", True, True),
    ("reverse", True, False),
    ("bidirectional", True, True),
    ("bidirectional", False, False),
]


@pytest.mark.parametrize(("direction", "bias", "states"), CASES)
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_gradients_through_time(kind: str, direction: str, bias: bool, states: bool) -> None:
    directions = 2 if direction == "bidirectional" else 1
    arrays = arrays_of(kind, directions, bias, states)
    operands = ["x", "w", "r", "b" if bias else "", "", *(["h", "c"] if states else [])]
    operands = operands if kind == "LSTM" or not states else operands[:-1]
    outputs = ["y", "h_last", "c_last"][: 2 + (kind == "LSTM")]
    attributes = f'hidden_size = {HIDDEN}, direction = "{direction}"' + (
        ", linear_before_reset = 1" if kind == "GRU" else ""
    )
    text = (
        f"g ({', '.join(f'T[1] {name}' for name in arrays)}) => ({', '.join(f'T {name}' for name in outputs)}) "
        f"{{ {', '.join(outputs)} = {kind} <{attributes}>({', '.join(operands)}) }}"
    )
    model = require_torch(text, arrays, twin_of(kind, list(arrays), directions, direction == "reverse"))
    kinds = [node.op_type for node in model.graph]
    assert kinds.count(f"{kind}Training") == kinds.count(f"{kind}Gradient") == directions
    assert kind not in kinds


def test_only_the_last_state_is_used() -> None:
    arrays = arrays_of("LSTM", 1, True, False)
    text = "g (T[1] x, T[1] w, T[1] r, T[1] b) => (T h) { y, h = LSTM <hidden_size = 2>(x, w, r, b) }"
    twin = twin_of("LSTM", list(arrays), 1, False)
    require_torch(text, arrays, lambda *tensors: twin(*tensors)[1])


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("activation", ["Tanh", "Relu"])
def test_rnn_is_written_out(direction: str, activation: str) -> None:
    directions = 2 if direction == "bidirectional" else 1
    arrays = {
        "x": normal(0, STEPS, BATCH, INPUTS),
        "w": normal(1, directions, HIDDEN, INPUTS),
        "r": normal(2, directions, HIDDEN, HIDDEN),
        "b": normal(3, directions, 2 * HIDDEN),
        "h": normal(4, directions, BATCH, HIDDEN),
    }
    listed = ", ".join([f'"{activation}"'] * directions)
    attributes = f'hidden_size = {HIDDEN}, direction = "{direction}", activations = [{listed}]'
    text = f"""g (T[1] x, T[1] w, T[1] r, T[1] b, T[1] h) => (T y, T last) {{
        y, last = RNN <{attributes}>(x, w, r, b, , h) }}"""

    def twin(x: torch.Tensor, w: torch.Tensor, r: torch.Tensor, b: torch.Tensor, h: torch.Tensor) -> Any:
        weights = [part for place in range(directions) for part in (w[place], r[place], *b[place].split(HIDDEN))]
        function = torch.rnn_tanh if activation == "Tanh" else torch.rnn_relu
        source = x.flip(0) if direction == "reverse" else x
        y, last = function(source, h, weights, True, 1, 0.0, False, directions == 2, False)
        y = y.flip(0) if direction == "reverse" else y
        return y.reshape(STEPS, BATCH, directions, HIDDEN).permute(0, 2, 1, 3), last

    require_torch(text, arrays, twin)


def test_gru_that_resets_before_the_product_is_written_out() -> None:
    """PyTorch has no such GRU, so its steps are written out here too."""
    text = "g (T[1] x, T[1] w, T[1] r, T[1] b, T[1] h) => (T y) { y = GRU <hidden_size = 2>(x, w, r, b, , h) }"

    def twin(x: torch.Tensor, w: torch.Tensor, r: torch.Tensor, b: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        state, states, (r_z, r_r, r_u) = h[0], [], r[0].split(HIDDEN)
        for step in x:
            s_z, s_r, s_u = (step @ w[0].T + b[0].reshape(2, -1).sum(0)).split(HIDDEN, 1)
            z, reset = torch.sigmoid(s_z + state @ r_z.T), torch.sigmoid(s_r + state @ r_r.T)
            u = torch.tanh(s_u + (reset * state) @ r_u.T)
            state = (1 - z) * u + z * state
            states.append(state)
        return torch.stack(states)[:, None]

    require_torch(text, arrays_of("GRU", 1, True, True), twin)


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ("hidden_size = 2, linear_before_reset = 1, clip = 1.0", "clip and input_forget"),
        ('hidden_size = 2, linear_before_reset = 1, activations = ["Relu", "Tanh"]', "activations other than"),
    ],
)
def test_other_forms_are_refused(attributes: str, reason: str) -> None:
    arrays = arrays_of("GRU", 1, True, False)
    text = f"g (T[1] x, T[1] w, T[1] r, T[1] b) => (T y) {{ y = GRU <{attributes}>(x, w, r, b) }}"
    with pytest.raises(DifferentiationError, match=reason):
        gradients_of(build(text, arrays), {})
