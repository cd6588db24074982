"""Matrices transposed by squares, as a Gemm needs its left operand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt.targets.common import host_arrays
from graphopt.targets.cpu import build
from graphopt.targets.cpu.kernels import transpose
from tests.helpers.lab import Lab


@pytest.mark.parametrize(("k", "m"), [(16, 16), (33, 130), (129, 17), (300, 64), (7, 40), (1, 1)])
def test_left_operand_of_a_product(any_lab: Lab, k: int, m: int) -> None:
    """Squares that overlap at the edges; matrices without squares."""
    draw = np.random.default_rng([k, m])
    feeds = {"a": draw.standard_normal((k, m), np.float32), "b": draw.standard_normal((k, 5), np.float32)}
    any_lab.same("y = Gemm <transA = 1> (a, b)", feeds, rtol=1e-4)


@pytest.mark.parametrize("shape", [(16, 16), (40, 50), (17, 300)])
def test_every_bit_is_moved(any_lab: Lab, shape: tuple[int, int]) -> None:
    """NaN with a payload, infinities, denormals and negative zeros too; every element of the result is written."""
    a: Any = np.random.default_rng(3).integers(0, 1 << 32, shape, np.uint32).view(np.float32)
    a.flat[:4] = np.inf, -0.0, 1e-40, np.nan
    kernel = transpose.matrix(shape, any_lab.target.cpu.lanes(), "float32")
    module = build.compile_functions({"turn": kernel.with_attr("global_symbol", "turn")}, any_lab.target.cpu)
    given, result = host_arrays.empty(shape, "float32"), host_arrays.empty(shape[::-1], "float32")
    given[...] = a
    result[...] = -1
    module["turn"](host_arrays.tensor(given), host_arrays.tensor(result))
    np.testing.assert_array_equal(result.view(np.uint32), a.T.copy().view(np.uint32))
