"""Reductions of every kind over some, all and no axes, and of nothing, against ONNX Runtime."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

import graphopt

KINDS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")


def check(lab: Any, nodes: list[str], feeds: dict[str, Any], constants: dict[str, Any], opset: int = 18) -> None:
    """One program with an output for each node."""
    names = [f"y{number}" for number in range(len(nodes))]
    body = "\n".join(f"{name} = {node}" for name, node in zip(names, nodes, strict=True))
    lab.check(lab.model(body, feeds, constants, names, opset=opset), feeds)


def values(dtype: str = "float32") -> Any:
    return (np.random.default_rng(3).uniform(0.1, 2, (2, 3, 4)) * (1 if dtype == "float32" else 9)).astype(dtype)


AXES = {"none": np.zeros(0, np.int64), "one": np.array([1]), "two": np.array([-1, 0])}


@pytest.mark.parametrize("keep", [0, 1])
def test_axes_as_an_operand(lab: Any, keep: int) -> None:
    nodes = [
        f"Reduce{kind} <keepdims = {keep}, noop_with_empty_axes = {noop}> ({operands})"
        for kind, noop, operands in product(KINDS, (0, 1), ("x", *(f"x, {name}" for name in AXES)))
    ]
    check(lab, nodes, {"x": values()}, AXES)


@pytest.mark.parametrize("opset", [11, 13])
def test_axes_as_an_attribute(lab: Any, opset: int) -> None:
    kinds = [kind for kind in KINDS if opset < 13 or kind != "Sum"]
    nodes = [f"Reduce{kind} <keepdims = {keep}{axes}> (x)"
             for kind, keep, axes in product(kinds, (0, 1), ("", ", axes = [1]", ", axes = [-1, 0]"))]  # fmt: skip
    check(lab, nodes, {"x": values()}, {}, opset)


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_integers(lab: Any, dtype: str) -> None:
    """A mean goes towards zero, and its sum may be larger than its type."""
    kinds = ("L1", "Max", "Mean", "Min", "Sum", "SumSquare")
    nodes = [f"Reduce{kind} <noop_with_empty_axes = 1> (x, {axes})" for kind in kinds for axes in ("none", "one")]
    feeds = {"x": values(dtype) - 9, "large": np.full((2, 3), 2_000_000_000, dtype)}
    check(lab, [*nodes, "ReduceMean (large, one)"], feeds, AXES)


def test_nothing_and_special_values(lab: Any) -> None:
    x = values()
    x[0, 0, 0], x[0, 1, 1], x[1, 0] = np.nan, np.inf, 0.7
    feeds = {"x": x, "e": np.zeros((2, 0, 4), np.float32)}
    nodes = [f"Reduce{kind} (e, one)" for kind in KINDS]
    nodes += [f"Reduce{kind} <noop_with_empty_axes = 1> (x)" for kind in KINDS if kind != "LogSumExp"]
    check(lab, nodes, feeds, AXES)


def test_squares_of_single_elements_overflow(lab: Any) -> None:
    check(lab, ["ReduceL2 <noop_with_empty_axes = 1> (x)"], {"x": np.array([1e30, 1e-30, -2.0, 0.0], np.float32)}, {})


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_groups_of_constants_have_no_negative_variance(lab: Any, dtype: str) -> None:
    """ONNX Runtime makes up to 5e-4 of them in doubles, by parts in float32."""
    feeds = {"x": np.full((1, 4, 16, 16), 7.3, dtype)}
    constants = {"s": np.ones(4, dtype), "b": np.zeros(4, dtype)}
    model = lab.model("y = GroupNormalization<num_groups = 2>(x, s, b)", feeds, constants, ("y",), opset=21)
    found = graphopt.compile(model).session().run(feeds)["y"]
    np.testing.assert_allclose(found, 0, atol=1e-3)


def test_dynamic_quantization(lab: Any) -> None:
    """Zeros have the scale 1; a constant, and tensors on one side of 0, still reach to it."""
    generator = np.random.default_rng(4)
    feeds = {
        "zeros": np.zeros((2, 3), np.float32), "same": np.full((2, 2), 0.7, np.float32),
        "below": -generator.uniform(1, 2, (2, 3)).astype(np.float32), "tiny": np.full(3, 1e-30, np.float32),
        "nothing": np.zeros((0, 3), np.float32), "above": generator.uniform(1, 2, (4, 3)).astype(np.float32),
        "both": generator.standard_normal((5, 7)).astype(np.float32),
    }  # fmt: skip
    names = [f"{kind}_{name}" for name in feeds for kind in "ysz"]
    body = "\n".join(f"y_{name}, s_{name}, z_{name} = DynamicQuantizeLinear ({name})" for name in feeds)
    lab.check(lab.model(body, feeds, {}, names), feeds)
