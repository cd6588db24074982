"""Masks of bits and of Dropout: the same bits as the bodies of the functions."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.targets.common.kernels.training import masks
from tests.helpers.lab import Lab


@pytest.mark.parametrize("shape", [(1,), (8,), (3, 5, 7), (2, 16, 9, 8)])
def test_bits(any_lab: Lab, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(1).integers(-2, 3, shape).astype(np.float32)
    x.reshape(-1)[0] = np.nan
    dy = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    model = any_lab.model("b = graphopt.PositiveBits(x) y = graphopt.MaskByBits(dy, b)", {"x": x, "dy": dy})
    found = any_lab.execute(any_lab.check(model, {"x": x, "dy": dy}), {"x": x, "dy": dy})["y"]
    np.testing.assert_array_equal(found, np.where(x > 0, dy, 0))


def test_a_bit_that_is_not_set_hides_what_is_there(lab: Lab) -> None:
    dy = np.array([np.nan, np.inf, np.nan, 1e-42, -0.0], np.float32)
    bits = np.array([0b11000], np.uint8)
    model = lab.model("y = graphopt.MaskByBits(dy, bits)", {"dy": dy, "bits": bits})
    y = lab.execute(lab.lower(model), {"dy": dy, "bits": bits})["y"]
    assert y.tobytes() == np.array([0, 0, 0, 1e-42, -0.0], np.float32).tobytes()


@pytest.mark.parametrize(
    ("seed", "counter", "ratio"), [(0, 0, 0.5), (7, 3, 0.1), (123456789, 1 << 40, 0.9), (-1, 2, 0.0)]
)
def test_dropout(lab: Lab, seed: int, counter: int, ratio: float) -> None:
    body = f"y = graphopt.DropoutMask<seed={seed}, ratio={ratio}>(c, s)"
    c = np.array(counter, np.int64)
    lab.same(body, {"c": c}, {"s": np.array([3, 1000])})


def test_the_hash_of_a_number() -> None:
    """Values of `lowbias32` from its definition."""
    assert masks.mixed(0) == 0
    x = 1
    x = ((x ^ x >> 16) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ x >> 15) * 0x846CA68B) & 0xFFFFFFFF
    assert masks.mixed(1) == x ^ x >> 16
