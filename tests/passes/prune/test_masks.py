"""Masks against their definitions: the weakest groups go, as many as asked, ties in order."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from graphopt.errors import GraphoptError
from graphopt.passes.prune import masks
from graphopt.passes.prune.granularity import KINDS, Granularity
from graphopt.passes.prune.masks import Criterion, prune

SPELLINGS = ["element", "row", "column", "kernel", "channel", "filter", "block:2x1", "block:4x3", "block:1x2"]


def groups(shape: tuple[int, int, int], granularity: Granularity) -> list[list[tuple[int, int, int]]]:
    """The places of each group, in memory order of the groups."""
    height, width, depth = granularity.group(shape)
    found: dict[tuple[int, ...], list[tuple[int, int, int]]] = {}
    for place in np.ndindex(*shape):
        found.setdefault((place[0] // height, place[1] // width, place[2] // depth), []).append(place)
    return [found[key] for key in sorted(found)]


@given(
    st.sampled_from(SPELLINGS),
    st.tuples(st.sampled_from([4, 8]), st.sampled_from([6, 12]), st.sampled_from([1, 3])),
    st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.99]),
    st.sampled_from(list(Criterion)),
    st.sampled_from([np.float32, np.float64, np.float16, ml_dtypes.bfloat16]),
    st.sampled_from([1, 7, 1 << 22]),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=150, deadline=None)
def test_the_weakest_groups_go(
    spelling: str,
    shape: tuple[int, int, int],
    sparsity: float,
    criterion: Criterion,
    dtype: type,
    chunk: int,
    seed: int,
) -> None:
    granularity = Granularity.parse(spelling)
    given_weights = np.random.default_rng(seed).integers(-4, 5, shape).astype(dtype)  # with ties
    weights = given_weights.copy()
    before, masks._CHUNK = masks._CHUNK, chunk
    try:
        prune(weights, granularity, criterion, sparsity)
    finally:
        masks._CHUNK = before
    together = groups(shape, granularity)
    power = 1 if criterion is Criterion.MAGNITUDE else 2
    worth = [math.fsum(abs(float(given_weights[place])) ** power for place in group) for group in together]
    count = min(math.ceil(sparsity * len(together) - 1e-9), len(together) - 1)
    gone = sorted(sorted(range(len(together)), key=lambda index: (worth[index], index))[:count])
    expected = given_weights.copy()
    for index in gone:
        for place in together[index]:
            expected[place] = 0
    np.testing.assert_array_equal(weights.astype(np.float64), expected.astype(np.float64))
    assert weights.dtype == dtype


@pytest.mark.parametrize(("spelling", "keep", "among"), [("2:4", 2, 4), ("1:2", 1, 2), ("1:8", 1, 8)])
def test_n_of_m_neighbouring_inputs_stay(spelling: str, keep: int, among: int) -> None:
    weights = np.random.default_rng(0).standard_normal((5, 16, 3)).astype(np.float32)
    pruned = weights.copy()
    prune(pruned, Granularity.parse(spelling), Criterion.ENERGY, 0.5)
    for output, tap in np.ndindex(5, 3):
        for start in range(0, 16, among):
            old = np.abs(weights[output, start : start + among, tap])
            new = np.abs(pruned[output, start : start + among, tap])
            assert np.count_nonzero(new) == keep
            assert sorted(new[new > 0].tolist()) == sorted(old.tolist())[-keep:]


def test_equal_weights_go_in_order() -> None:
    weights = np.ones((2, 4, 1), np.float32)
    prune(weights, Granularity.parse("element"), Criterion.ENERGY, 0.5)
    assert weights[..., 0].tolist() == [[0, 0, 0, 0], [1, 1, 1, 1]]
    weights = np.ones((1, 4, 1), np.float32)
    prune(weights, Granularity.parse("2:4"), Criterion.ENERGY, 0.5)
    assert weights[..., 0].tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1e30])
def test_squares_neither_vanish_nor_overflow(scale: float) -> None:
    weights = (np.arange(1, 9).reshape(4, 2, 1) * np.float32(scale)).astype(np.float32)
    prune(weights, Granularity.parse("row"), Criterion.ENERGY, 0.5)
    assert np.count_nonzero(weights[:2]) == 0
    assert np.count_nonzero(weights[2:]) == 4


def test_energy_is_that_of_all_weights() -> None:
    weights: NDArray[np.float32] = np.random.default_rng(0).standard_normal((6, 5, 4)).astype(np.float32)
    assert masks.energy(weights) == pytest.approx(float(np.square(weights.astype(np.float64)).sum()))
    assert masks.is_finite(weights)
    weights[5, 4, 3] = np.nan
    assert not masks.is_finite(weights)


@pytest.mark.parametrize("text", [*SPELLINGS, "2:4"])
def test_spellings_come_back(text: str) -> None:
    assert str(Granularity.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", "rows", "block", "block:0x4", "block:4", "4:4", "5:4", "0:4", "block:HxW", "N:M", "n:m"]
)
def test_other_spellings_are_refused(text: str) -> None:
    with pytest.raises(GraphoptError, match="there is no granularity|keep fewer"):
        Granularity.parse(text)
    assert len(KINDS) == 8
