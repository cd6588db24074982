"""Rows and columns are brought together in square blocks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from graphopt.solve.coclustering import Problem, Solution, as_given, blocks_of, bound, cocluster, validate


def partitions(items: list[int], size: int) -> Iterator[list[int]]:
    """Orders of `items` of which no two have the same groups of `size`."""
    if not items:
        yield []
        return
    for others in itertools.combinations(items[1:], size - 1):
        rest = [item for item in items[1:] if item not in others]
        for further in partitions(rest, size):
            yield [items[0], *others, *further]


def optimum(problem: Problem) -> int:
    n, k = problem.support.shape
    return min(
        blocks_of(problem, np.array(rows), np.array(columns))
        for rows in partitions(list(range(n)), problem.height)
        for columns in partitions(list(range(k)), problem.width)
    )


def planted(blocks: tuple[int, int], size: int, density: float, stray: float) -> tuple[Problem, int]:
    """Blocks, with stray elements, rows and columns shuffled; and the blocks before that."""
    generator = np.random.default_rng(0)
    support = np.kron(generator.random(blocks) < density, np.ones((size, size), np.bool_))
    support |= generator.random(support.shape) < stray
    ideal = as_given(Problem(support, size, size)).blocks
    n, k = support.shape
    return Problem(support[generator.permutation(n)][:, generator.permutation(k)], size, size), ideal


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("shape", "height", "width"), [((6, 6), 2, 2), ((6, 8), 3, 4), ((8, 6), 4, 2), ((6, 6), 3, 3)])
def test_within_five_percent_of_the_optimum(shape: tuple[int, int], height: int, width: int, seed: int) -> None:
    support = np.random.default_rng(seed).random(shape) < 0.3
    problem = Problem(support, height, width)
    solution = cocluster(problem)
    assert validate(problem, solution) == []
    assert solution.bound <= optimum(problem) <= solution.blocks <= 1.05 * optimum(problem)


@pytest.mark.parametrize(("blocks", "size"), [((24, 32), 16), ((16, 12), 32)])
def test_planted_blocks_are_found(blocks: tuple[int, int], size: int) -> None:
    """One element in a hundred is stray, yet at least 95 % of what the blocks save is saved."""
    problem, ideal = planted(blocks, size, 0.1, 0.001)
    solution, shuffled = cocluster(problem), as_given(problem).blocks
    assert shuffled - solution.blocks >= 0.95 * (shuffled - ideal)
    assert validate(problem, solution) == []


def test_blocks_without_strays_meet_the_bound_or_what_was_planted() -> None:
    problem, ideal = planted((20, 20), 16, 0.1, 0.0)
    assert cocluster(problem).blocks <= ideal


@given(
    shape=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 9),
)
@settings(deadline=None, max_examples=40, derandomize=True)
def test_any_support(shape: tuple[int, int], height: int, width: int, density: float, seed: int) -> None:
    problem = Problem(np.random.default_rng(seed).random(shape) < density, height, width)
    solution = cocluster(problem)
    assert validate(problem, solution) == []
    assert solution.blocks <= as_given(problem).blocks
    assert 0.0 <= solution.gap <= 1.0


def test_wrong_solutions_are_found() -> None:
    problem = Problem(np.eye(4, dtype=bool), 2, 2)
    order = (0, 1, 2, 3)
    assert validate(problem, Solution((0, 1, 2, 2), order, 2, 2)) == ["the order of 4 rows is no permutation of 4"]
    assert validate(problem, Solution(order, (0, 1), 2, 2)) == ["the order of 2 columns is no permutation of 4"]
    assert validate(problem, Solution(order, order, 3, 2)) == ["2 blocks hold something, the solution says 3"]
    assert validate(problem, Solution(order, order, 2, 3)) == ["the bound 3 is above the 2 blocks"]


def test_the_bound_of_rows_and_of_columns() -> None:
    support: NDArray[np.bool_] = np.zeros((8, 8), np.bool_)
    support[0] = True
    assert bound(Problem(support, 4, 2)) == 4
    assert bound(Problem(support.T, 2, 4)) == 4
    assert bound(Problem(np.eye(8, dtype=bool), 4, 4)) == 2
