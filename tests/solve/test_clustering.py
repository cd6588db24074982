"""Rows that need the same columns are brought together."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from graphopt.solve import clustering
from graphopt.solve.clustering import (
    Problem,
    Solution,
    as_given,
    bound,
    cluster,
    columns_of,
    expected_of_random,
    validate,
)


def partitions(rows: list[int], height: int) -> Iterator[list[tuple[int, ...]]]:
    if not rows:
        yield []
        return
    for others in itertools.combinations(rows[1:], height - 1):
        rest = [row for row in rows[1:] if row not in others]
        for further in partitions(rest, height):
            yield [(rows[0], *others), *further]


def optimum(problem: Problem) -> int:
    rows = list(range(len(problem.supports)))
    return min(
        sum(int(problem.supports[list(group)].any(axis=0).sum()) for group in groups)
        for groups in partitions(rows, problem.height)
    )


def planted(rows: int, columns: int, height: int, density: float, stray: float, seed: int = 0) -> NDArray[np.bool_]:
    """Groups of `height` equal rows, with stray elements, rows and columns shuffled."""
    generator = np.random.default_rng(seed)
    supports = np.repeat(generator.random((rows // height, columns)) < density, height, axis=0)
    supports |= generator.random(supports.shape) < stray
    return supports[generator.permutation(rows)][:, generator.permutation(columns)]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("rows", "height"), [(8, 4), (9, 3), (10, 2), (12, 4)])
def test_within_five_percent_of_the_optimum(rows: int, height: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    random = generator.random((rows, 20)) < 0.3
    for supports in (random, planted(rows, 20, height, 0.4, 0.05, seed)):
        problem = Problem(supports, height)
        solution = cluster(problem)
        assert validate(problem, solution) == []
        assert solution.bound <= optimum(problem) <= solution.columns <= 1.05 * optimum(problem)


@pytest.mark.parametrize("height", [4, 16, 32])
def test_planted_groups_are_found(height: int) -> None:
    """One element in a hundred is stray, yet at least 95 % of what grouping saves is saved."""
    supports = planted(512, 700, height, 0.1, 0.001)
    problem = Problem(supports, height)
    solution = cluster(problem)
    generator = np.random.default_rng(0)
    ordered = np.repeat(generator.random((512 // height, 700)) < 0.1, height, axis=0)
    ordered |= generator.random(ordered.shape) < 0.001
    ideal, shuffled = columns_of(Problem(ordered, height), range_of(512)), as_given(problem).columns
    assert shuffled - solution.columns >= 0.95 * (shuffled - ideal)
    assert validate(problem, solution) == []


def range_of(rows: int) -> tuple[int, ...]:
    return tuple(range(rows))


def test_many_rows_are_clustered_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clustering, "LARGEST", 100)
    problem = Problem(planted(512, 700, 16, 0.1, 0.001), 16)
    in_parts = cluster(problem)
    assert validate(problem, in_parts) == []
    monkeypatch.undo()
    saved = as_given(problem).columns - cluster(problem).columns
    assert as_given(problem).columns - in_parts.columns >= 0.9 * saved


def test_groups_without_strays_meet_the_bound() -> None:
    problem = Problem(planted(256, 300, 16, 0.1, 0.0), 16)
    assert cluster(problem).gap == 0.0


def test_a_random_mask_cannot_be_clustered() -> None:
    supports = np.random.default_rng(0).random((512, 512)) < 0.1
    solution = cluster(Problem(supports, 16))
    vectors = 512 // 16 * 512
    assert solution.columns > 0.85 * expected_of_random(0.1, 16) * vectors


@pytest.mark.parametrize(("density", "height", "kept"), [(0.1, 16, 0.81), (0.05, 16, 0.56), (0.02, 16, 0.28)])
def test_what_a_random_mask_leaves(density: float, height: int, kept: float) -> None:
    assert expected_of_random(density, height) == pytest.approx(kept, abs=0.005)


@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 70),
    height=st.integers(1, 17),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 9),
)
@settings(deadline=None, max_examples=60, derandomize=True)
def test_any_supports(rows: int, columns: int, height: int, density: float, seed: int) -> None:
    problem = Problem(np.random.default_rng(seed).random((rows, columns)) < density, height)
    solution = cluster(problem)
    assert validate(problem, solution) == []
    assert solution.columns <= as_given(problem).columns
    assert 0.0 <= solution.gap <= 1.0


def test_wrong_solutions_are_found() -> None:
    problem = Problem(np.eye(4, dtype=bool), 2)
    assert validate(problem, Solution((0, 1, 2, 2), 4, 4)) == ["the order of 4 rows is no permutation of 4"]
    assert validate(problem, Solution((0, 1, 2, 3), 3, 2)) == ["the groups need 4 columns, the solution says 3"]
    assert validate(problem, Solution((0, 1, 2, 3), 4, 5)) == ["the bound 5 is above the 4 columns of the groups"]


def test_the_bound_of_columns_and_of_rows() -> None:
    spread = np.eye(8, dtype=bool)  # every column in one group
    assert bound(Problem(spread, 4)) == 8
    one_dense = np.zeros((8, 6), bool)
    one_dense[0] = True
    assert bound(Problem(one_dense, 4)) == 6


def test_equal_problems_have_equal_solutions() -> None:
    supports = planted(64, 100, 8, 0.2, 0.02)
    assert cluster(Problem(supports, 8)) == cluster(Problem(supports.copy(), 8))
