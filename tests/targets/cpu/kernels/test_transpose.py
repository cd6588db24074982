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


@pytest.mark.parametrize(("n", "k"), [(16, 16), (48, 50), (64, 33), (112, 300), (2048, 17), (40, 40), (33, 20)])
def test_right_operand_that_a_run_gives(any_lab: Lab, n: int, k: int) -> None:
    """Panels that are full, zero padded, and not made of squares."""
    draw = np.random.default_rng([n, k])
    feeds = {"a": draw.standard_normal((20, k), np.float32), "b": draw.standard_normal((n, k), np.float32)}
    any_lab.same("y = Gemm <transB = 1> (a, b)", feeds, rtol=1e-4)


@pytest.mark.parametrize("width", [16, 48])
def test_panels_are_zero_padded(any_lab: Lab, width: int) -> None:
    lanes = any_lab.target.cpu.lanes()
    a: Any = np.random.default_rng(3).integers(0, 1 << 32, (64, 50), np.uint32).view(np.float32)
    kernel = transpose.panels(a.shape, width, lanes, "float32")
    module = build.compile_functions({"pack": kernel.with_attr("global_symbol", "pack")}, any_lab.target.cpu)
    given, result = host_arrays.empty(a.shape, "float32"), host_arrays.empty((1, -(-64 // width), 50, width), "float32")
    given[...] = a
    result[...] = -1
    module["pack"](host_arrays.tensor(given), host_arrays.tensor(result))
    wanted = np.zeros((result.shape[1] * width, 50), np.float32)
    wanted[:64] = a
    expected = wanted.reshape(-1, width, 50).transpose(0, 2, 1).copy()
    np.testing.assert_array_equal(result[0].view(np.uint32), expected.view(np.uint32))
