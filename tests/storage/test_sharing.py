"""Codebooks: near the best possible, exact where values are few, and never a zero."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from graphopt.storage import sharing


def _error(weights: np.ndarray, count: int) -> sharing.CodebookError:
    codebook = sharing.share(weights, count)
    assert codebook is not None
    assert codebook.dtype == weights.dtype
    assert (codebook != 0).all()
    assert len(codebook) <= count
    assert (np.diff(codebook) > 0).all()
    nonzero = weights[weights != 0]
    return sharing.error(nonzero, codebook, sharing.nearest(nonzero, codebook))


@pytest.mark.parametrize(("bits", "best"), [(5, 0.0516), (6, 0.0264), (8, 0.0084)])
def test_normal_weights(bits: int, best: float) -> None:
    """Lloyd and Max: the best quantizer of 2^b levels for a normal variable has an error of about 1.65 / 2^b."""
    weights = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    assert _error(weights, 2**bits - 1).rms_relative < best * 1.08


def test_an_outlier_does_not_cost_the_others_their_values() -> None:
    weights = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    weights[5] = 1e4
    codebook = sharing.share(weights, 31)
    assert codebook is not None
    places = sharing.nearest(weights, codebook)
    assert np.abs(codebook[places] - weights).max() < 2
    assert len(np.unique(places)) == 31


def test_few_values_are_kept() -> None:
    weights = np.array([0.5, 0, -0.25, 0.5, 3, -0.0], np.float32)
    assert _error(weights, 3) == sharing.CodebookError(0.0, 0.0)
    assert sharing.share(np.zeros(5, np.float32), 31) is not None
    assert sharing.share(np.zeros(0, np.float32), 31) is not None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_not_shared(value: float) -> None:
    assert sharing.share(np.array([1, 2, value], np.float32), 1) is None


def test_weights_around_zero_do_not_become_zero() -> None:
    weights = np.array([1e-3, -1e-3, 2e-3, -2e-3], np.float32)
    codebook = sharing.share(weights, 1)
    assert codebook is not None
    assert codebook.tolist() == [np.float32(1e-3)] or codebook.tolist() == [np.float32(-1e-3)]


def test_no_codebook_of_two_is_better() -> None:
    """Of two clusters every cut of the sorted weights can be tried."""
    weights = np.concatenate([np.random.default_rng(1).normal(center, 0.1, 50) for center in (-1, 0.5, 2)])
    ordered = np.sort(weights)
    least = min(ordered[:cut].var() * cut + ordered[cut:].var() * (150 - cut) for cut in range(1, 150))
    codebook = sharing.share(weights, 2)
    assert codebook is not None
    assert np.square(codebook[sharing.nearest(weights, codebook)] - weights).sum() == pytest.approx(least, rel=1e-6)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=60), st.integers(1, 31))
@settings(max_examples=100, deadline=None)
def test_any_finite_weights(values: list[float], count: int) -> None:
    weights = np.array(values, np.float32)
    spread = float(np.ptp(weights.astype(np.float64))) if values else 0.0
    assert _error(weights, count).max_abs <= spread


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_extremes(dtype: type) -> None:
    info = np.finfo(dtype)
    weights = np.array([info.max, -info.max, info.smallest_subnormal, 1, 2, 3], dtype)
    assert np.isfinite(_error(weights, 3).max_abs)


def test_many_weights_are_summed_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = np.random.default_rng(0).standard_normal(20_000).astype(np.float32)
    exact = _error(weights, 31).rms_relative
    monkeypatch.setattr(sharing, "_STEPS", 1000)
    monkeypatch.setattr(sharing, "CHUNK", 777)
    assert _error(weights, 31).rms_relative == pytest.approx(exact, rel=0.05)
    codebooks = [sharing.share(weights, 31) for _ in range(2)]
    assert all(np.array_equal(a, b) for a, b in pairwise(codebooks))


@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=40, unique=True),
    st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=40),
)
@settings(max_examples=150, deadline=None)
@example([0.0, 9.357521676101752e-193], [1.026793168311874e112])  # far beyond the last limit
def test_the_grid_finds_what_a_search_does(limits: list[float], values: list[float]) -> None:
    ordered, every = np.sort(limits), np.array(values + limits)
    found = sharing._Search(ordered)(every)
    np.testing.assert_array_equal(found, np.searchsorted(ordered, every))


@pytest.mark.parametrize("spread", [0.0, 1e-310, 1e-3, 1.0, 1e300])
def test_even_and_uneven_limits(spread: float) -> None:
    generator = np.random.default_rng(0)
    for limits in (generator.standard_normal(255) * spread, generator.standard_normal(255) ** 9 * spread):
        values = np.concatenate([limits, generator.standard_normal(5000) * spread])
        ordered = np.unique(limits)
        np.testing.assert_array_equal(sharing._Search(ordered)(values), np.searchsorted(ordered, values))
