"""Products with compressed columns, decoded by the kernel, against the body of the operator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from graphopt.ops.compressed import pack_columns
from graphopt.targets.cpu.kernels.sparse import columns

few = settings(deadline=None, max_examples=15, derandomize=True)


def weights(k: int, n: int, density: float, values: int = 16, seed: int = 0, dtype: str = "float32") -> NDArray[Any]:
    """Sparse weights [k, n] of few values; a column without any, and one with all."""
    generator = np.random.default_rng(seed)
    book = generator.standard_normal(values).astype(dtype)
    w = book[generator.integers(values, size=(k, n))] * (generator.random((k, n)) < density)
    if k > 2:
        w[0], w[1] = 0, book[0]
    return np.asarray(w, dtype)


def node(w: NDArray[Any]) -> tuple[str, dict[str, NDArray[Any]]]:
    constants = dict(zip(("codes", "zeros", "pointers", "book"), pack_columns(w), strict=True))
    return (
        f"y = graphopt.CompressedColumnsMatMul <outputs = [{w.shape[1]}]>(x, codes, zeros, pointers, book)",
        constants,
    )


def numbers(*shape: int, dtype: str = "float32") -> NDArray[Any]:
    return np.random.default_rng([7, *shape]).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("density", [0.02, 0.3, 1.0])
@pytest.mark.parametrize("shape", [(1, 50), (3, 50), (2, 2, 50)], ids=str)
def test_product(lab: Any, shape: tuple[int, ...], density: float) -> None:
    """Gaps of more than 15 zeros, columns of an odd number of entries, rows of x that are zero in parts."""
    body, constants = node(weights(50, 70, density))
    x = numbers(*shape)
    x[..., ::3] = 0
    lowered = lab.same(body, {"x": x}, constants)
    assert len(lowered.calls) == 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_on_every_level(any_lab: Any, dtype: str) -> None:
    body, constants = node(weights(40, 90, 0.1, 200, dtype=dtype))
    any_lab.same(f"t {body[1:]} y = Relu(t)", {"x": numbers(1, 40, dtype=dtype)}, constants)


@given(
    st.integers(1, 4), st.integers(1, 60), st.integers(1, 300), st.sampled_from([0.005, 0.1, 0.9]), st.integers(1, 255)
)
@few
def test_any_shape(lab: Any, m: int, k: int, n: int, density: float, values: int) -> None:
    body, constants = node(weights(k, n, density, values, seed=m))
    lab.same(body, {"x": numbers(m, k)}, constants)


def test_long_sums(lab: Any) -> None:
    """Sums restart, and errors stay those of short ones."""
    body, constants = node(weights(6000, 5, 0.9, 4))
    lab.same(body, {"x": numbers(1, 6000) + 1}, constants)


def test_zeros_and_special_numbers(lab: Any) -> None:
    """An input that is zero reads no weights; NaN and infinities reach only the outputs that have a weight."""
    w = np.zeros((4, 40), np.float32)
    w[0, :20], w[1, 10:30], w[2, 5] = 2, 3, 4
    body, constants = node(w)
    x = np.array([[np.nan, np.inf, 0.0, -0.0]], np.float32)
    lowered = lab.lower(lab.model(body, {"x": x}, constants, ["y"]))
    y = lab.execute(lowered, {"x": x})["y"]
    assert np.isnan(y[0, :20]).all()
    assert np.isposinf(y[0, 20:30]).all()
    np.testing.assert_array_equal(y[0, 30:], 0)


def test_nothing_but_zeros(lab: Any) -> None:
    body, constants = node(np.zeros((30, 40), np.float32))
    lab.same(body, {"x": numbers(2, 30)}, constants)


@pytest.mark.parametrize("cores", [1, 2, 3])
def test_tasks_have_as_much_to_do(cores: int) -> None:
    """Ranges of outputs with about as many entries, also where most weights belong to few outputs."""
    w = weights(100, 600, 0.05)
    w[:, :40] = weights(100, 40, 0.9)
    codes, zeros, pointers, _ = pack_columns(w)
    entries = columns.places(codes, zeros, pointers)
    assert len(entries[0]) == np.count_nonzero(w)
    made = columns.cut(*entries, 100, 600, cores)
    assert len(made.firsts) == cores + 1
    pairs = made.pointers[:, -1] - made.pointers[:, 0]
    assert pairs.max() <= 1.3 * pairs.mean()
