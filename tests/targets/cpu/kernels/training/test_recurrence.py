"""LSTM and GRU of a training step, forward and back through time, against the bodies of the functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from graphopt.targets.cpu.kernels import rnn
from tests.helpers.lab import Lab

few = settings(deadline=None, max_examples=8, derandomize=True)


def numbers(*shape: int, scale: float = 1.0) -> Any:
    return (np.random.default_rng([17, *shape]).standard_normal(shape) * scale).astype(np.float32)


def check(lab: Lab, cell: str, steps: int, batch: int, inputs: int, hidden: int, **changed: Any) -> Any:
    """Forward, then backward on what it kept; every operand is known at run time only."""
    gates = rnn.GATES[cell]
    feeds = {
        "x": numbers(steps, batch, inputs),
        "w": numbers(gates * hidden, inputs, scale=1 / np.sqrt(inputs)),
        "r": numbers(gates * hidden, hidden, scale=1 / np.sqrt(hidden)),
        "b": numbers(2 * gates * hidden),
        "h0": numbers(batch, hidden),
        "dy": numbers(steps, batch, hidden)[::-1].copy(),
        "dh": numbers(1, batch, hidden)[0],
    }
    if cell == "LSTM":
        feeds |= {"c0": numbers(1, 1, batch, hidden)[0, 0], "dc": numbers(1, 1, 1, batch, hidden)[0, 0, 0]}
        body = """y, gates, c = graphopt.LSTMTraining(x, w, r, b, h0, c0)
            dg, d1, d2 = graphopt.LSTMGradient(dy, gates, c, c0, r, dh, dc)"""
        outputs = ("y", "gates", "c", "dg", "d1", "d2")
    else:
        body = """y, gates, u = graphopt.GRUTraining(x, w, r, b, h0)
            dg, d1, d2 = graphopt.GRUGradient(dy, gates, u, y, h0, r, dh)"""
        outputs = ("y", "gates", "u", "dg", "d1", "d2")
    feeds |= changed
    return lab.check(lab.model(body, feeds, outputs=outputs), feeds, rtol=1e-4)


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
@pytest.mark.parametrize(
    ("steps", "batch", "inputs", "hidden"),
    [(1, 1, 1, 1), (5, 3, 7, 37)],
)
def test_cells(lab: Any, cell: str, steps: int, batch: int, inputs: int, hidden: int) -> None:
    check(lab, cell, steps, batch, inputs, hidden)
