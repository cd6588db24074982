"""Maxima and minima along rows of any length."""

import math
from typing import Any

import numpy as np
import pytest


def numbers(shape: tuple[int, ...], dtype: str = "float32") -> Any:
    values = np.random.default_rng([7, *shape]).standard_normal(shape) * 50
    return np.abs(values).astype(dtype) if dtype.startswith("u") else values.astype(dtype)


LENGTHS = (1, 2, 7, 8, 31, 33, 510, 4096)


def test_every_length_with_and_without_the_axis(any_lab: Any) -> None:
    """Rows of the length of a vector, below, above, and far above; one row is cut into parts."""
    feeds = {f"x{n}": numbers((3, n)) for n in LENGTHS} | {"long": numbers((1, 70001)), "flat": numbers((40000,))}
    body = " ".join(
        f"y{n} = ReduceMax<keepdims=1>(x{n}, last) z{n} = ReduceMin<keepdims=0>(x{n}, last)" for n in LENGTHS
    )
    body += " a = ReduceMax(long, last) b = ReduceMin<keepdims=0>(flat) "
    outputs = [f"{letter}{n}" for n in LENGTHS for letter in "yz"] + ["a", "b"]
    any_lab.check(any_lab.model(body, feeds, {"last": np.array([-1])}, outputs), feeds, rtol=0)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64", "float64"])
def test_other_types(lab: Any, dtype: str) -> None:
    feeds = {"x": numbers((2, 3, 5, 77), dtype)}
    model = lab.model("y = ReduceMax(x, axes) z = ReduceMin(x, axes)", feeds, {"axes": np.array([2, 3])}, ("y", "z"))
    lab.check(model, feeds, rtol=0)


def test_global_max_pool_of_lines_planes_and_volumes(lab: Any) -> None:
    feeds = {"a": numbers((2, 3, 130)), "b": numbers((1, 5, 9, 13)), "c": numbers((1, 2, 3, 4, 5))}
    model = lab.model("p = GlobalMaxPool(a) q = GlobalMaxPool(b) r = GlobalMaxPool(c)", feeds, {}, ("p", "q", "r"))
    lab.check(model, feeds, rtol=0)


def test_infinities_zeros_denormals_and_constants(lab: Any) -> None:
    rows = [
        np.full(37, -math.inf), np.full(37, math.inf), np.full(37, -3.5), np.full(37, 1e-42), np.full(37, -1e-42),
        np.where(np.arange(37) == 36, 2.0, -math.inf), np.where(np.arange(37) == 0, -2.0, math.inf),
    ]  # fmt: skip
    feeds = {"x": np.array(rows, np.float32)}
    model = lab.model("y = ReduceMax(x, axes) z = ReduceMin(x, axes)", feeds, {"axes": np.array([1])}, ("y", "z"))
    lab.check(model, feeds, rtol=0)


def test_what_is_computed_before_joins_the_reduction(lab: Any) -> None:
    lowered = lab.same("a = Mul(x, x) b = Tanh(a) y = GlobalMaxPool(b)", {"x": numbers((1, 64, 130))})
    assert len(lowered.calls) == 1
