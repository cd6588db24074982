"""Pools on the plain layout, against ONNX Runtime: windows that leave the image, rows of any length, special values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

few = settings(deadline=None, max_examples=25, derandomize=True)


def image(dtype: str, *shape: int) -> Any:
    random = np.random.default_rng([5, *shape])
    if dtype == "float32":
        return random.standard_normal(shape).astype(np.float32)
    return random.integers(-128 if dtype == "int8" else 0, 128, shape).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "int8", "uint8"])
@pytest.mark.parametrize("planes", [(1, 3), (2, 40)])
@pytest.mark.parametrize(
    "window",
    [
        "kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]",
        "kernel_shape=[2,2], strides=[2,2]",
        "kernel_shape=[5,1], pads=[2,0,2,0], dilations=[1,1]",
        "kernel_shape=[2,3], strides=[3,1], dilations=[2,2], pads=[1,2,0,1]",
        "kernel_shape=[3,3], strides=[2,2], ceil_mode=1",
        "kernel_shape=[17,2], pads=[9,0,9,0]",
    ],
)
def test_the_largest(lab: Any, dtype: str, planes: tuple[int, int], window: str) -> None:
    lab.same(f"y = MaxPool<{window}>(x)", {"x": image(dtype, *planes, 13, 37)})


@pytest.mark.parametrize("include", [0, 1])
@pytest.mark.parametrize(
    "window",
    [
        "kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]",
        "kernel_shape=[2,4], strides=[2,1], pads=[1,0,0,3]",
        "kernel_shape=[3,3], strides=[2,2], auto_pad='SAME_LOWER'",
        "kernel_shape=[13,13], pads=[6,6,6,6]",
    ],
)
def test_the_average(lab: Any, window: str, include: int) -> None:
    window = window.replace("'", '"')
    lab.same(f"y = AveragePool<{window}, count_include_pad={include}>(x)", {"x": image("float32", 2, 5, 13, 37)})


@pytest.mark.parametrize("operator", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("shape", [(2, 3, 50), (1, 2, 5, 6, 7)])
def test_lines_and_volumes(lab: Any, operator: str, shape: tuple[int, ...]) -> None:
    kernel = [2, 3, 4][: len(shape) - 2]
    lab.same(f"y = {operator}<kernel_shape={kernel}, strides={[2] * len(kernel)}>(x)", {"x": image("float32", *shape)})


@few
@given(
    rows=st.integers(1, 12),
    columns=st.integers(1, 40),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    data=st.data(),
)
def test_any_window(lab: Any, rows: int, columns: int, kernel: Any, strides: Any, data: Any) -> None:
    pads = [data.draw(st.integers(0, (k - 1) // 2 if k > 1 else 0), label="pad") for k in (*kernel, *kernel)]
    assume(rows + pads[0] + pads[2] >= kernel[0] and columns + pads[1] + pads[3] >= kernel[1])
    window = f"kernel_shape={list(kernel)}, strides={list(strides)}, pads={pads}"
    operator = data.draw(st.sampled_from(["MaxPool", "AveragePool"]))
    lab.same(f"y = {operator}<{window}>(x)", {"x": image("float32", 1, 2, rows, columns)})


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 1e-40, np.inf, 3e38])
def test_constants(lab: Any, value: float) -> None:
    """Of windows that hold nothing but -inf ONNX Runtime makes -inf or the lowest number, by where they are."""
    x = np.full((1, 2, 9, 20), value, np.float32)
    lab.same("y = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(x)", {"x": x})
    if abs(value) < 1e38:
        lab.same("y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(x)", {"x": x})
