"""What outputs may be off by holds for sums of rounded factors, and for nothing much worse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt.errors import GraphoptError
from graphopt.verify.oracle import TOLERANCES, compare
from graphopt.verify.precisions import PRECISIONS, TF32_TOLERANCE, tolerances


def rounded(x: Any, bits: int) -> Any:
    """x with `bits` of mantissa behind the leading one, to the nearest, ties to even."""
    dropped = 23 - bits
    words = x.view(np.uint32)
    return ((words + (1 << (dropped - 1)) - 1 + (words >> dropped & 1)) & ~np.uint32((1 << dropped) - 1)).view(
        np.float32
    )


@pytest.mark.parametrize("depth", [16, 1024])
@pytest.mark.parametrize("layers", [1, 16])
def test_tf32_is_10_bits_and_float32_sums(depth: int, layers: int) -> None:
    rng = np.random.default_rng([depth, layers])
    exact = seen = coarse = rng.standard_normal((8, depth)).astype(np.float32)
    for _ in range(layers):
        w = (rng.standard_normal((depth, depth)) / np.sqrt(depth)).astype(np.float32)
        exact, seen, coarse = exact @ w, rounded(seen, 10) @ rounded(w, 10), rounded(coarse, 4) @ rounded(w, 4)
    allowed = tolerances("tf32")
    assert not compare({"y": exact}, {"y": seen}, allowed)
    assert compare({"y": exact}, {"y": seen}, tolerances("fp32"))
    assert compare({"y": exact}, {"y": coarse}, allowed)


def test_small_numbers_get_no_room_that_only_halves_need() -> None:
    assert TF32_TOLERANCE.atol < TOLERANCES["float16"].atol
    assert tolerances("tf32")["float16"] == TOLERANCES["float16"]


def test_names() -> None:
    assert tuple(PRECISIONS) == ("fp32", "tf32", "fp16", "bf16")
    assert tolerances("fp32") == TOLERANCES
    with pytest.raises(GraphoptError, match="--precision int4 is unknown; choose one of fp32, tf32, fp16, bf16"):
        tolerances("int4")
