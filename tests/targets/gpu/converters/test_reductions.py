"""Means of halves: nothing between is a half."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from graphopt.targets.gpu import target


@pytest.mark.parametrize(
    ("body", "shape", "constants"),
    [
        ("y = GlobalAveragePool(x)", (2, 3, 300, 300), {}),
        ("y = ReduceMean <keepdims = 0> (x, axes)", (2, 5000), {"axes": np.array([-1])}),
        ("y = ReduceMean(x)", (40, 50), {}),
    ],
)
def test_means_of_halves_are_computed_in_single_precision(
    lab: Any, body: str, shape: tuple[int, ...], constants: dict[str, Any]
) -> None:
    feeds = {"x": np.ones(shape, np.float16)}
    model = lab.model(body, feeds, constants)
    backend, graph = target.CudaTarget("sm_80"), model.graph
    assert backend.supports(graph[0], model.opset_imports) is None
    found = backend.lower(list(graph), list(graph.inputs), list(graph.outputs), model.opset_imports, "s_")
    (call,) = found.calls
    assert {found.values[name].dtype for name in (*call.inputs, *call.outputs)} == {"float16"}
    assert {found.values[name].dtype for name in call.scratch} <= {"float32"}
    (made,) = found.functions.values()
    assert re.search(r"\(half\)\(.* / 0x", made.source), "it is rounded after the division"
    assert found.plans[call.symbol].algorithm == "sums"


def test_axes_that_are_not_known_are_left_alone(lab: Any) -> None:
    feeds = {"x": np.ones((2, 50), np.float16), "axes": np.array([1])}
    model = lab.model("y = ReduceMean(x, axes)", feeds)
    assert target.CudaTarget("sm_80").supports(model.graph[0], model.opset_imports) is not None
