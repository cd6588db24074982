"""Masks in bits, and random masks that depend on seed, counter and place alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.helpers.functions import run_function


@given(st.lists(st.integers(0, 5), min_size=0, max_size=3), st.sampled_from([np.float32, np.float64]))
@settings(max_examples=20, deadline=None)
def test_bits_are_the_signs_of_the_elements(shape: list[int], dtype: type) -> None:
    x = np.asarray(np.random.default_rng(0).integers(-1, 2, shape), dtype)
    (bits,) = run_function("PositiveBits", [x], dtypes=[np.uint8])
    np.testing.assert_array_equal(bits, np.packbits(x.reshape(-1) > 0, bitorder="little"))
    dy = np.asarray(np.random.default_rng(1).standard_normal(shape), dtype)
    (dx,) = run_function("MaskByBits", [dy, bits])
    np.testing.assert_array_equal(dx, np.where(x > 0, dy, 0))


def test_bits_of_special_values() -> None:
    x = np.array([np.nan, np.inf, -np.inf, 1e-45, -1e-45, 0.0, -0.0, 1.0, 2.0], np.float32)
    (bits,) = run_function("PositiveBits", [x], dtypes=[np.uint8])
    assert bits.tolist() == [0b10001010, 1]
    (dx,) = run_function("MaskByBits", [np.full(9, np.nan, np.float32), bits])
    np.testing.assert_array_equal(dx, [0, np.nan, 0, np.nan, 0, 0, 0, np.nan, np.nan])


def mix(x: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """The 32-bit finalizer lowbias32, in arithmetic that wraps."""
    x = x ^ (x >> np.uint32(16))
    x = x * np.uint32(0x7FEB352D)
    x = x ^ (x >> np.uint32(15))
    x = x * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def mask_of(seed: int, counter: int, ratio: float, count: int) -> NDArray[np.bool_]:
    one = np.array([seed & 0xFFFFFFFF], np.uint32)
    key = mix(mix(one) + np.array([counter & 0xFFFFFFFF], np.uint32))
    second = mix(key + np.uint32(0x9E3779B9))
    random = mix(mix(np.arange(count, dtype=np.uint32) + key) ^ second)
    return np.asarray(random >= np.float64(np.float32(ratio)) * 2.0**32)


def dropout_mask(seed: int, counter: int, ratio: float, shape: list[int]) -> NDArray[Any]:
    operands = [np.array(counter, np.int64), np.array(shape, np.int64)]
    return run_function("DropoutMask", operands, {"ratio": ratio, "seed": seed}, [np.bool_])[0]


@given(
    st.integers(-(2**31), 2**31),
    st.integers(0, 2**33),
    st.floats(0, 1, width=32),
    st.lists(st.integers(0, 40), max_size=2),
)
@settings(max_examples=20, deadline=None)
def test_mask_is_a_hash_in_32_bits(seed: int, counter: int, ratio: float, shape: list[int]) -> None:
    expected = mask_of(seed, counter, ratio, int(np.prod(shape))).reshape(shape)
    np.testing.assert_array_equal(dropout_mask(seed, counter, ratio, shape), expected)


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 0.9])
def test_masks_keep_their_share_and_are_independent(ratio: float) -> None:
    masks = [dropout_mask(seed, counter, ratio, [40_000]) for seed, counter in ((0, 0), (0, 1), (1, 0), (1, 1))]
    for mask in masks:
        assert abs(mask.mean() - (1 - ratio)) < 0.012
        assert abs((mask[:-1] & mask[1:]).mean() - (1 - ratio) ** 2) < 0.015
        assert abs((mask[:-64] & mask[64:]).mean() - (1 - ratio) ** 2) < 0.015
    for first in range(4):
        for second in range(first):
            assert abs((masks[first] & masks[second]).mean() - (1 - ratio) ** 2) < 0.015
