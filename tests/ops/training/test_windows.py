"""Gradients of convolutions and pools, against PyTorch."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.helpers.functions import run_function

CONVS = (torch.nn.functional.conv1d, torch.nn.functional.conv2d, torch.nn.functional.conv3d)
MAX_POOLS = (torch.nn.functional.max_pool1d, torch.nn.functional.max_pool2d, torch.nn.functional.max_pool3d)
AVERAGE_POOLS: tuple[Any, ...] = (
    torch.nn.functional.avg_pool1d,
    torch.nn.functional.avg_pool2d,
    torch.nn.functional.avg_pool3d,
)


def normal(seed: int, *shape: int, dtype: type = np.float32) -> NDArray[Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@given(data=st.data(), rank=st.integers(1, 3), group=st.sampled_from([1, 1, 2, 3]))
@settings(max_examples=25, deadline=None)
def test_weight_gradient_of_a_convolution(data: st.DataObject, rank: int, group: int) -> None:
    """Any kernel, stride, dilation, padding on each side, group, in one to three dimensions."""
    small = st.lists(st.integers(1, 3), min_size=rank, max_size=rank)
    kernel, strides, dilations = data.draw(small), data.draw(small), data.draw(small)
    pads = data.draw(st.lists(st.integers(0, 2), min_size=2 * rank, max_size=2 * rank))
    spare = data.draw(st.lists(st.integers(0, 4), min_size=rank, max_size=rank))
    extents = [
        max(1, (k - 1) * d + 1 + s - b - e)
        for k, d, s, b, e in zip(kernel, dilations, spare, pads[:rank], pads[rank:], strict=True)
    ]
    x = torch.from_numpy(normal(0, 2, 2 * group, *extents))
    w = torch.from_numpy(normal(1, 3 * group, 2, *kernel)).requires_grad_()
    around = list(itertools.chain(*reversed(list(zip(pads[:rank], pads[rank:], strict=True)))))
    y = CONVS[rank - 1](torch.nn.functional.pad(x, around), w, stride=strides, dilation=dilations, groups=group)
    dy = normal(2, *y.shape)
    y.backward(torch.from_numpy(dy))
    attributes = {
        "kernel_shape": kernel, "strides": strides, "dilations": dilations, "pads": pads, "group": group
    }  # fmt: skip
    (dw,) = run_function("ConvWeightGradient", [x.numpy(), dy], attributes)
    assert w.grad is not None
    np.testing.assert_allclose(dw, w.grad.numpy(), rtol=1e-4, atol=1e-4)


POOLS = [
    {"shape": (2, 3, 8), "kernel_shape": [2], "strides": [2], "pads": [0, 0]},
    {"shape": (2, 2, 7, 7), "kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    {"shape": (1, 2, 7, 8), "kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 0], "ceil_mode": 1},
    {"shape": (1, 2, 9, 6), "kernel_shape": [3, 3], "strides": [1, 1], "pads": [1, 1, 1, 1]},
    {"shape": (1, 2, 5, 6, 4), "kernel_shape": [2, 3, 2], "strides": [2, 1, 1], "pads": [1, 1, 0, 1, 1, 0]},
]
DILATED = {"shape": (1, 2, 9, 9), "kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 1, 1, 1], "dilations": [2, 2]}


def attributes_of(pool: dict[str, Any]) -> dict[str, Any]:
    rank = len(pool["kernel_shape"])
    given = {name: value for name, value in pool.items() if name != "shape"}
    return {"dilations": [1] * rank, "ceil_mode": 0, **given}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("pool", [*POOLS, DILATED])
def test_gradient_of_a_max_pool_goes_to_the_first_maximum(pool: dict[str, Any], dtype: type) -> None:
    """Small integers: many maxima are equal."""
    attributes = attributes_of(pool)
    rank, shape = len(attributes["kernel_shape"]), pool["shape"]
    numbers = np.random.default_rng(0).integers(-2, 3, shape).astype(dtype)
    x = torch.from_numpy(numbers).requires_grad_()
    y = MAX_POOLS[rank - 1](
        x, attributes["kernel_shape"], attributes["strides"], attributes["pads"][:rank], attributes["dilations"],
        ceil_mode=bool(attributes["ceil_mode"]),
    )  # fmt: skip
    pooled, argmax = run_function("MaxPoolArgmax", [numbers], attributes, [dtype, np.uint8])
    np.testing.assert_array_equal(pooled, y.detach().numpy())
    dy = normal(1, *y.shape, dtype=dtype)
    y.backward(torch.from_numpy(dy))
    (dx,) = run_function("MaxPoolGradient", [dy, argmax, np.array(shape)], attributes)
    assert x.grad is not None
    np.testing.assert_allclose(dx, x.grad.numpy(), rtol=1e-6, atol=1e-6)


def test_argmax_of_nan_and_of_infinities() -> None:
    """NaN before any number; where all are -inf, the first element and never the padding."""
    x = np.full((1, 1, 2, 6), -np.inf, np.float32)
    x[0, 0, 1, 2:] = [5, np.nan, np.inf, np.inf]
    attributes = {"kernel_shape": [2, 2], "strides": [2, 2], "dilations": [1, 1], "pads": [1, 0, 1, 0], "ceil_mode": 0}
    _, argmax = run_function("MaxPoolArgmax", [x], attributes, [np.float32, np.uint8])
    assert argmax.tolist() == [[[[2, 2, 2], [0, 1, 0]]]]


@pytest.mark.parametrize("include", [0, 1])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("pool", POOLS)
def test_gradient_of_an_average_pool(pool: dict[str, Any], include: int, dtype: type) -> None:
    attributes = attributes_of(pool)
    rank, shape = len(attributes["kernel_shape"]), pool["shape"]
    x = torch.from_numpy(normal(0, *shape, dtype=dtype)).requires_grad_()
    y = AVERAGE_POOLS[rank - 1](
        x, attributes["kernel_shape"], attributes["strides"], attributes["pads"][:rank],
        ceil_mode=bool(attributes["ceil_mode"]), count_include_pad=bool(include),
    )  # fmt: skip
    dy = normal(1, *y.shape, dtype=dtype)
    y.backward(torch.from_numpy(dy))
    (dx,) = run_function("AveragePoolGradient", [dy, np.array(shape)], {**attributes, "count_include_pad": include})
    assert x.grad is not None
    np.testing.assert_allclose(dx, x.grad.numpy(), rtol=1e-6 if dtype is np.float32 else 1e-12, atol=1e-6)


def test_nan_in_a_gradient_stays_in_its_window() -> None:
    attributes = {"kernel_shape": [2], "strides": [2], "dilations": [1], "pads": [0, 0], "ceil_mode": 0}
    dy = np.array([[[np.nan, 1.0, np.inf]]], np.float32)
    (dx,) = run_function("AveragePoolGradient", [dy, np.array([1, 1, 6])], {**attributes, "count_include_pad": 0})
    np.testing.assert_array_equal(dx, [[[np.nan, np.nan, 0.5, 0.5, np.inf, np.inf]]])
