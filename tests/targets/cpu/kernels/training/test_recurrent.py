"""LSTM and GRU of the training step, forth and back, against the bodies of the functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt.targets.cpu.kernels.training.recurrent import Plan
from graphopt.verify.oracle import run_onnxruntime
from tests.helpers.lab import Lab

GATES = {"LSTM": 4, "GRU": 3}


def numbers(*shape: int) -> Any:
    return (np.random.default_rng([23, *shape]).standard_normal(shape) / 2).astype(np.float32)


def run(lab: Lab, body: str, feeds: dict[str, Any], outputs: tuple[str, ...]) -> dict[str, Any]:
    """What the kernels compute, which ONNX Runtime agrees with."""
    model = lab.model(body, feeds, outputs=outputs)
    lowered = lab.lower(model)
    assert not lowered.notes
    found, expected = lab.execute(lowered, feeds), run_onnxruntime(model, feeds)
    for name in outputs:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=2e-6, err_msg=name)
    return found


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
@pytest.mark.parametrize(("steps", "batch", "inputs", "hidden"), [(1, 1, 2, 1), (4, 9, 3, 21), (3, 2, 16, 64)])
def test_forth_and_back(lab: Lab, cell: str, steps: int, batch: int, inputs: int, hidden: int) -> None:
    width = GATES[cell] * hidden
    feeds = {
        "x": numbers(steps, batch, inputs), "w": numbers(width, inputs), "r": numbers(width, hidden) / 3,
        "b": numbers(2 * width), "h": numbers(batch, hidden), "c": numbers(batch, hidden) + 0.5,
    }  # fmt: skip
    states = ("h", "c") if cell == "LSTM" else ("h",)
    given = {name: feeds[name] for name in ("x", "w", "r", "b", *states)}
    body = f"y, g, k = graphopt.{cell}Training({', '.join(given)})"
    found = run(lab, body, given, ("y", "g", "k"))
    back = {"dy": numbers(steps, batch, hidden) + 0.1, "g": found["g"], "k": found["k"], "r": feeds["r"]}
    back |= {"dh": numbers(batch, hidden) * 0.7, "dc": numbers(batch, hidden) * 0.3, "h": feeds["h"], "c": feeds["c"]}
    if cell == "LSTM":
        names, outputs = ("dy", "g", "k", "c", "r", "dh", "dc"), ("dg", "dh0", "dc0")
    else:
        back["y"] = found["y"]
        names, outputs = ("dy", "g", "k", "y", "h", "r", "dh"), ("dg", "du", "dh0")
    body = f"{', '.join(outputs)} = graphopt.{cell}Gradient({', '.join(names)})"
    run(lab, body, {name: back[name] for name in names}, outputs)


def test_rows_of_the_batch_are_divided_evenly(lab: Lab) -> None:
    plan = Plan.of((10, 9, 64), "float32", lab.target.cpu)
    assert -(-plan.batch // plan.rows) >= min(lab.target.cpu.cores, plan.batch)
    assert plan.rows * plan.vectors + plan.vectors < lab.target.cpu.level.registers


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_every_level(any_lab: Lab, cell: str) -> None:
    test_forth_and_back(any_lab, cell, 2, 3, 4, 19)
