"""Gradients of convolutions and pools, against PyTorch: any rank, group, stride, dilation and padding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from graphopt.errors import DifferentiationError
from tests.helpers.draws import normal
from tests.helpers.gradients import build, gradients_of, require_torch

CONVS = (F.conv1d, F.conv2d, F.conv3d)
TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
MAX_POOLS = (F.max_pool1d, F.max_pool2d, F.max_pool3d)


def around(pads: list[int]) -> list[int]:
    """Pads of ONNX (all begins, all ends) as torch.nn.functional.pad takes them."""
    half = len(pads) // 2
    return [count for axis in reversed(range(half)) for count in (pads[axis], pads[half + axis])]


@given(data=st.data(), rank=st.integers(1, 3), group=st.sampled_from([1, 2]), dtype=st.sampled_from(["f4", "f8"]))
@settings(max_examples=15, deadline=None)
def test_convolution(data: st.DataObject, rank: int, group: int, dtype: str) -> None:
    small = st.lists(st.integers(1, 3), min_size=rank, max_size=rank)
    kernel, strides, dilations = data.draw(small), data.draw(small), data.draw(small)
    pads = data.draw(st.lists(st.integers(0, 2), min_size=2 * rank, max_size=2 * rank))
    extents = [
        max(1, (k - 1) * d + 1 + data.draw(st.integers(0, 4)) - pads[axis] - pads[rank + axis])
        for axis, (k, d) in enumerate(zip(kernel, dilations, strict=True))
    ]
    kind = np.dtype(dtype)
    arrays = {
        "x": normal(0, 2, 2 * group, *extents, dtype=kind),
        "w": normal(1, 2 * group, 2, *kernel, dtype=kind),
        "b": normal(2, 2 * group, dtype=kind),
    }

    def twin(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return CONVS[rank - 1](F.pad(x, around(pads)), w, b, stride=strides, dilation=dilations, groups=group)

    text = f"""g (T[1] x, T[1] w, T[1] b) => (T y) {{
        y = Conv <strides = {strides}, dilations = {dilations}, pads = {pads}, group = {group}>(x, w, b) }}"""
    require_torch(text, arrays, twin)


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_automatic_padding(mode: str) -> None:
    """Of 7 elements with a stride of 2 and a kernel of 4 SAME adds one before and two after, or the other way."""
    pads = {"SAME_UPPER": [1, 2], "SAME_LOWER": [2, 1], "VALID": [0, 0]}[mode]
    arrays = {"x": normal(0, 1, 2, 7, dtype=np.float32), "w": normal(1, 3, 2, 4, dtype=np.float32)}
    text = f'g (T[1] x, T[1] w) => (T y) {{ y = Conv <auto_pad = "{mode}", strides = [2]>(x, w) }}'
    require_torch(text, arrays, lambda x, w: F.conv1d(F.pad(x, pads), w, stride=2))


@given(data=st.data(), rank=st.integers(1, 3), group=st.sampled_from([1, 2]), dtype=st.sampled_from(["f4", "f8"]))
@settings(max_examples=15, deadline=None)
def test_transposed_convolution(data: st.DataObject, rank: int, group: int, dtype: str) -> None:
    def draw(low: int, high: int) -> list[int]:
        return data.draw(st.lists(st.integers(low, high), min_size=rank, max_size=rank))

    kernel, strides, dilations, pad = draw(1, 3), draw(1, 3), draw(1, 2), draw(0, 1)
    extra = [data.draw(st.integers(0, each - 1)) for each in strides]
    kind = np.dtype(dtype)
    arrays = {
        "x": normal(0, 2, 2 * group, *(each + 2 for each in draw(1, 2)), dtype=kind),
        "w": normal(1, 2 * group, 3, *kernel, dtype=kind),
        "b": normal(2, 3 * group, dtype=kind),
    }

    def twin(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return TRANSPOSED[rank - 1](
            x, w, b, stride=strides, padding=pad, output_padding=extra, groups=group, dilation=dilations
        )

    text = f"""g (T[1] x, T[1] w, T[1] b) => (T y) {{
        y = ConvTranspose <strides = {strides}, dilations = {dilations}, pads = {pad + pad}, group = {group},
                           output_padding = {extra}>(x, w, b) }}"""
    require_torch(text, arrays, twin)


def test_transposed_convolution_to_a_given_shape() -> None:
    arrays = {"x": normal(0, 1, 2, 5, dtype=np.float32), "w": normal(1, 2, 3, 3, dtype=np.float32)}
    text = "g (T[1] x, T[1] w) => (T y) { y = ConvTranspose <strides = [2], output_shape = [10]>(x, w) }"
    require_torch(text, arrays, lambda x, w: F.conv_transpose1d(x, w, stride=2)[..., 1:])


POOLS: list[dict[str, Any]] = [
    {"shape": (2, 3, 8), "kernel": [2], "strides": [2], "pads": [0], "ceil": 0},
    {"shape": (2, 2, 7, 7), "kernel": [3, 3], "strides": [2, 2], "pads": [1, 1], "ceil": 0},
    {"shape": (1, 2, 7, 8), "kernel": [3, 2], "strides": [2, 2], "pads": [1, 0], "ceil": 1},
    {"shape": (1, 2, 5, 6, 4), "kernel": [2, 3, 2], "strides": [2, 1, 1], "pads": [1, 1, 0], "ceil": 0},
]


KINDS = [
    (kind, pool, dtype)
    for kind in ("MaxPool", "AveragePool", "AveragePool counted")
    for pool in POOLS
    for dtype in (np.float64, np.float32)
    if kind == "MaxPool" or not pool["ceil"] or dtype is np.float32
]
"""ONNX's reference divides the last windows of ceil_mode otherwise than ONNX Runtime and PyTorch."""


@pytest.mark.parametrize(("kind", "pool", "dtype"), KINDS)
def test_pool(kind: str, pool: dict[str, Any], dtype: type) -> None:
    rank, counted = len(pool["kernel"]), kind.endswith("counted")
    attributes = f"kernel_shape = {pool['kernel']}, strides = {pool['strides']}, ceil_mode = {pool['ceil']}, "
    attributes += f"pads = {pool['pads'] * 2}" + (", count_include_pad = 1" if counted else "")

    def twin(x: torch.Tensor) -> torch.Tensor:
        given = {"padding": pool["pads"], "ceil_mode": bool(pool["ceil"])}
        if kind == "MaxPool":
            return MAX_POOLS[rank - 1](x, pool["kernel"], pool["strides"], **given)
        function: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[rank - 1]
        result: torch.Tensor = function(x, pool["kernel"], pool["strides"], count_include_pad=counted, **given)
        return result

    text = f"g (T[1] x) => (T y) {{ y = {kind.split()[0]} <{attributes}>(x) }}"
    require_torch(text, {"x": normal(0, *pool["shape"], dtype=dtype)}, twin)


def test_a_max_pool_keeps_a_byte_for_each_window() -> None:
    text = "g (T[1] x) => (T y) { y = MaxPool <kernel_shape = [2, 2], strides = [2, 2]>(x) }"
    model = require_torch(text, {"x": normal(0, 1, 2, 4, 4)}, lambda x: F.max_pool2d(x, 2))
    kept = next(node for node in model.graph if node.op_type == "MaxPoolArgmax").outputs[1]
    assert kept.dtype is not None
    assert kept.dtype.itemsize == 1
    assert [use.node.op_type for use in kept.uses()] == ["MaxPoolGradient"]
    assert "MaxPool" not in [node.op_type for node in model.graph]


def test_a_window_of_many_elements_and_one_whose_indices_are_used() -> None:
    large = "g (T[1] x) => (T y) { y = MaxPool <kernel_shape = [17, 17]>(x) }"
    require_torch(large, {"x": normal(0, 1, 2, 20, 20)}, lambda x: F.max_pool2d(x, 17, 1))
    listed = "g (T[1] x) => (T y, int64[1,2,2] i) { y, i = MaxPool <kernel_shape = [3], strides = [2]>(x) }"
    require_torch(listed, {"x": normal(0, 1, 2, 6)}, lambda x: F.max_pool1d(x, 3, 2))


@pytest.mark.parametrize("name", ["GlobalAveragePool", "GlobalMaxPool"])
def test_global_pool(name: str) -> None:
    twin = {"GlobalAveragePool": F.adaptive_avg_pool2d, "GlobalMaxPool": F.adaptive_max_pool2d}[name]
    x = np.random.default_rng(0).integers(-2, 3, (2, 3, 4, 5)).astype(np.float64)
    require_torch(f"g (T[1] x) => (T y) {{ y = {name}(x) }}", {"x": x}, lambda x: twin(x, 1))


def test_negative_automatic_padding_is_refused() -> None:
    """Of 8 elements a kernel of 1 with a stride of 3 reads 3: no padding makes that 8 / 3."""
    arrays = {"x": normal(0, 1, 2, 8, dtype=np.float32), "w": normal(1, 3, 2, 1, dtype=np.float32)}
    model = build('g (T[1] x, T[1] w) => (T y) { y = Conv <auto_pad = "SAME_UPPER", strides = [3]>(x, w) }', arrays)
    with pytest.raises(DifferentiationError, match=r"conv0 \(Conv: its automatic padding is negative; crop the input"):
        gradients_of(model, {})
