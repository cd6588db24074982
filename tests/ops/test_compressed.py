"""Compressed columns: the body computes the dense product, whatever the pattern is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from graphopt.errors import ModelError
from graphopt.ops.compressed import pack_columns
from graphopt.verify.oracle import run_onnxruntime
from tests.helpers.lab import make_model


def _body(weight: NDArray[Any], x: NDArray[Any]) -> NDArray[Any]:
    names = ("codes", "zeros", "pointers", "codebook")
    constants = dict(zip(names, pack_columns(weight), strict=True))
    call = f"graphopt.CompressedColumnsMatMul <outputs = [{weight.shape[1]}]>(x, codes, zeros, pointers, codebook)"
    result: NDArray[Any] = run_onnxruntime(make_model(f"y = {call}", {"x": x}, constants, ["y"], 20), {"x": x})["y"]
    return result


def pruned(k: int, n: int, density: float, seed: int = 0, values: int = 7) -> NDArray[Any]:
    generator = np.random.default_rng(seed)
    weight = (generator.integers(1, values + 1, (k, n)) * 0.25 - 1.125).astype(np.float32)
    weight[generator.random((k, n)) >= density] = 0
    return weight


def _require_dense(weight: NDArray[Any]) -> None:
    """Rows of the unit matrix, so that every weight is seen as it is."""
    np.testing.assert_array_equal(_body(weight, np.eye(len(weight), dtype=weight.dtype)), weight)


@pytest.mark.parametrize("density", [0.0, 0.01, 0.1, 0.5, 1.0])
@pytest.mark.parametrize(("k", "n"), [(1, 1), (1, 300), (300, 1), (40, 50), (17, 700), (3, 16), (3, 17)])
def test_the_matrix(k: int, n: int, density: float) -> None:
    _require_dense(pruned(k, n, density))


@pytest.mark.parametrize("gap", [14, 15, 16, 17, 31, 32, 33, 300])
def test_long_runs_of_zeros_are_padded(gap: int) -> None:
    weight = np.zeros((3, 400), np.float32)
    weight[1, [2, 3 + gap]] = 1, 2
    codes, zeros, pointers, codebook = pack_columns(weight)
    padding = gap // 16
    assert codes.tolist() == [1, *[0] * padding, 2]
    assert pointers.tolist() == [0, 0, padding + 2, padding + 2]
    assert codebook[:4].tolist() == [0, 1, 2, 0]
    halves = [half for byte in zeros.tolist() for half in (byte & 15, byte >> 4)]
    assert halves[: padding + 2] == [2, *[15] * padding, gap % 16]
    _require_dense(weight)


def test_sizes() -> None:
    """12 bits for each entry, a pointer for each input, and a codebook of a power of two."""
    weight = pruned(256, 512, 0.1, values=40)
    codes, zeros, pointers, codebook = pack_columns(weight)
    assert (codes.dtype, zeros.dtype, pointers.dtype, codebook.dtype) == (np.uint8, np.uint8, np.int32, np.float32)
    assert (len(zeros), len(pointers), len(codebook)) == (-(-len(codes) // 2), 257, 64)
    assert len(codes) < 1.3 * np.count_nonzero(weight)


@pytest.mark.parametrize("shape", [(3, 40), (1, 40), (2, 3, 40), (40,)])
def test_shapes_of_the_input(shape: tuple[int, ...]) -> None:
    weight, x = pruned(40, 90, 0.1), np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    np.testing.assert_allclose(_body(weight, x), x @ weight, rtol=1e-5, atol=1e-5)


@given(st.integers(1, 40), st.integers(1, 90), st.sampled_from([0.0, 0.02, 0.2, 0.9]), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_any_pattern(k: int, n: int, density: float, seed: int) -> None:
    _require_dense(pruned(k, n, density, seed))


def test_values() -> None:
    numbers = np.arange(1, 256, dtype=np.float32)
    _require_dense(np.stack([numbers, -np.zeros(255, np.float32)]))
    _require_dense(np.array([[1e-45, -1e-45, 3e38, -3e38, 0.0]], np.float32))
    _require_dense(pruned(20, 30, 0.3).astype(np.float64))
    with pytest.raises(ModelError, match="more than 255 values besides zero; share them first"):
        pack_columns(np.arange(257, dtype=np.float32).reshape(1, -1))
