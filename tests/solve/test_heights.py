"""Ordered rows are cut into ranges of groups of one height."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.solve.heights import Kind, Problem, Range, Solution, bound, cut, seconds_of, validate

KINDS = (Kind(1, 2.0, 0.5), Kind(2, 2.5, 0.5), Kind(4, 3.0, 0.5), Kind(1, 0.4, dense=True))


def all_ranges(rows: int, start: int = 0) -> Iterator[list[Range]]:
    """Every way to cut rows from `start` on, whole groups but for the last."""
    if start == rows:
        yield []
    for stop in range(start + 1, rows + 1):
        for number, kind in enumerate(KINDS):
            if stop == rows or (stop - start) % kind.height == 0:
                for further in all_ranges(rows, stop):
                    yield [Range(start, stop, number), *further]


@pytest.mark.parametrize("range_seconds", [0.0, 5.0])
@pytest.mark.parametrize("rows", range(1, 7))
def test_the_optimum_is_found(rows: int, range_seconds: float) -> None:
    for seed in range(4):
        supports = np.random.default_rng(seed).random((rows, 9)) < (0.2, 0.4, 0.6, 0.9)[seed]
        problem = Problem(supports, KINDS, range_seconds)
        solution = cut(problem)
        assert validate(problem, solution) == []
        assert solution.seconds == pytest.approx(min(seconds_of(problem, each) for each in all_ranges(rows)))


def test_each_part_gets_its_kind() -> None:
    """Dense rows, rows that are equal in fours, and rows that have nothing in common."""
    generator = np.random.default_rng(0)
    equal = np.repeat(generator.random((8, 64)) < 0.2, 4, axis=0)
    single = np.eye(16, 64, dtype=np.bool_)
    problem = Problem(np.concatenate([np.ones((12, 64), np.bool_), equal, single]), KINDS, 10.0)
    assert cut(problem).ranges == (Range(0, 12, 3), Range(12, 44, 2), Range(44, 60, 0))


def test_a_range_that_costs_more_than_it_saves_is_not_cut() -> None:
    supports = np.repeat(np.random.default_rng(0).random((8, 64)) < 0.2, 4, axis=0)
    supports[:4] = True
    assert len(cut(Problem(supports, KINDS, 1e6)).ranges) == 1


@given(
    rows=st.integers(0, 40),
    columns=st.integers(0, 130),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    range_seconds=st.sampled_from([0.0, 3.0, 100.0]),
    seed=st.integers(0, 9),
)
@settings(deadline=None, max_examples=40, derandomize=True)
def test_any_supports(rows: int, columns: int, density: float, range_seconds: float, seed: int) -> None:
    problem = Problem(np.random.default_rng(seed).random((rows, columns)) < density, KINDS, range_seconds)
    assert validate(problem, cut(problem)) == []


def test_wrong_solutions_are_found() -> None:
    problem = Problem(np.eye(4, dtype=np.bool_), KINDS)
    right = cut(problem)
    assert validate(problem, Solution((Range(0, 2, 0), Range(3, 4, 0)), 1.0, 0.0)) == [
        "a range from 3 to 4 follows row 2"
    ]
    assert validate(problem, Solution((Range(0, 2, 0),), 1.0, 0.0)) == ["the ranges end at 2 of 4 rows"]
    assert "the solution says 1.0 s" in validate(problem, Solution(right.ranges, 1.0, 0.0))[0]
    assert "is above the" in validate(problem, Solution(right.ranges, right.seconds, 1e9))[0]


def test_the_bound_is_met_by_rows_that_share_all() -> None:
    supports = np.repeat(np.random.default_rng(0).random((8, 64)) < 0.2, 4, axis=0)
    problem = Problem(supports, KINDS[2:3])
    assert bound(problem) == pytest.approx(cut(problem).seconds)
