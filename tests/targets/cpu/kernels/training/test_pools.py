"""Pools of the training step, planar and blocked, against the bodies of the functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.helpers.lab import Lab

few = settings(deadline=None, max_examples=6, derandomize=True)


def numbers(*shape: int) -> Any:
    """Few distinct numbers, so that maxima repeat."""
    return np.random.default_rng([17, *shape]).integers(-4, 5, shape).astype(np.float32)


def spelled(**attributes: Any) -> str:
    return ", ".join(f"{name}={list(v) if isinstance(v, tuple) else v}" for name, v in attributes.items())


def check(lab: Lab, x: Any, blocked: bool = False, **window: Any) -> None:
    """MaxPoolArgmax of x, and both gradients of ones that differ."""
    rank = len(window["kernel_shape"])
    suffix = "Blocked" if blocked else ""
    body = f"y, a = graphopt.MaxPoolArgmax{suffix}<{spelled(**window)}>(x)"
    model = lab.model(body, {"x": x}, outputs=("y", "a"))
    lowered = lab.check(model, {"x": x})
    found = lab.execute(lowered, {"x": x})
    dy = numbers(*found["y"].shape) + 0.25
    plane = f", plane={list(x.shape[2:4])}" if blocked else ""
    size = {} if blocked else {"s": np.array(x.shape)}
    operands = ", s" if size else ""
    given = {name: value for name, value in window.items() if not (blocked and name == "ceil_mode")}
    body = f"y = graphopt.MaxPoolGradient{suffix}<{spelled(**given)}{plane}>(dy, a{operands})"
    lab.same(body, {"dy": dy, "a": found["a"]}, size)
    if set(window["dilations"]) == {1}:
        include = int(any(window["pads"]) and not window["ceil_mode"])
        attributes = f"{spelled(**window)}, count_include_pad={include}{plane}"
        lab.same(f"y = graphopt.AveragePoolGradient{suffix}<{attributes}>(dy{operands})", {"dy": dy}, size)
    assert rank == len(window["dilations"])


def window(rank: int, **given: Any) -> dict[str, Any]:
    return {
        "kernel_shape": (3,) * rank, "strides": (2,) * rank, "dilations": (1,) * rank, "pads": (0,) * 2 * rank,
        "ceil_mode": 0, **given,
    }  # fmt: skip


@pytest.mark.parametrize("blocked", [False, True])
@pytest.mark.parametrize(
    "case",
    [
        pytest.param({"kernel_shape": (2, 2)}, id="disjoint"),
        pytest.param({"pads": (1, 1, 1, 1)}, id="overlapping with pads"),
        pytest.param({"strides": (1, 1), "kernel_shape": (3, 2), "pads": (1, 0, 0, 1)}, id="stride 1"),
        pytest.param({"ceil_mode": 1, "strides": (2, 3)}, id="ceil"),
        pytest.param({"dilations": (2, 1), "strides": (1, 2)}, id="dilation"),
    ],
)
def test_planes(lab: Lab, blocked: bool, case: dict[str, Any]) -> None:
    b = lab.target.cpu.lanes()
    x = numbers(2, 3, 9, 12, b) if blocked else numbers(2, 3, 9, 12)
    check(lab, x, blocked, **window(2, **case))


def test_every_level(any_lab: Lab) -> None:
    x = numbers(1, 2, 7, 9, any_lab.target.cpu.lanes())
    check(any_lab, x, True, **window(2, pads=(1, 0, 0, 1)))


def test_lines_and_volumes(lab: Lab) -> None:
    check(lab, numbers(2, 3, 11), **window(1, pads=(1, 1)))
    check(lab, numbers(1, 2, 5, 6, 7), **window(3, kernel_shape=(2, 3, 3)))


@given(
    plane=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    kernel_shape=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    pads=st.tuples(*[st.integers(0, 2)] * 4),
    ceil_mode=st.integers(0, 1),
    blocked=st.booleans(),
)
@few
def test_any_window(lab: Lab, plane: Any, blocked: bool, **case: Any) -> None:
    kernel, pads = case["kernel_shape"], case["pads"]
    for axis in range(2):
        assume(pads[axis] < kernel[axis] and pads[axis + 2] < kernel[axis])
        assume(plane[axis] + pads[axis] + pads[axis + 2] >= kernel[axis])
    check(lab, numbers(1, 2, *plane, *([lab.target.cpu.lanes()] if blocked else [])), blocked, **window(2, **case))


@pytest.mark.parametrize("blocked", [False, True])
def test_special_values(lab: Lab, blocked: bool) -> None:
    """NaN wins; of equal numbers the first; -inf alone names an element of its window."""
    b = lab.target.cpu.lanes()
    rows = np.array([[1, 1, np.nan, 5, -np.inf, -np.inf, 0.0, -0.0, 1e-42, 0.0]], np.float32)
    x = np.repeat(rows[None, None, ..., None], b, axis=4) if blocked else rows[None, None]
    suffix = "Blocked" if blocked else ""
    body = f"y, a = graphopt.MaxPoolArgmax{suffix}<{spelled(**window(2, kernel_shape=(1, 2), strides=(1, 2)))}>(x)"
    model = lab.model(body, {"x": x}, outputs=("y", "a"))
    found = lab.execute(lab.lower(model), {"x": x})["a"]
    assert found.reshape(5, -1)[:, 0].tolist() == [0, 0, 0, 0, 0]
