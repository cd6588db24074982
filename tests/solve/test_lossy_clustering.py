"""The fewest vectors that hold a share of the energy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from graphopt.solve import clustering, lossy_clustering
from graphopt.solve.lossy_clustering import Problem, bound, grouped, mask, solve, validate


def optimum(problem: Problem) -> int:
    """The fewest vectors of any order."""
    best = problem.energies.size
    for order in itertools.permutations(range(len(problem.energies))):
        sums = np.sort(grouped(problem.energies, np.array(order), problem.height), axis=None)[::-1]
        enough = np.cumsum(sums) >= (problem.keep - lossy_clustering.SLACK) * sums.sum()
        best = min(best, int(np.argmax(enough)) + 1)
    return best


def planted(rows: int, columns: int, height: int, stray: float, seed: int = 0) -> NDArray[np.float64]:
    """Groups of rows with the same columns, shuffled, and small weights elsewhere with the chance `stray`."""
    generator = np.random.default_rng(seed)
    supports = np.repeat(generator.random((rows // height, columns)) < 0.2, height, axis=0)
    weights = supports * generator.standard_normal(supports.shape)
    weights += (generator.random(supports.shape) < stray) * generator.normal(0, 0.05, supports.shape)
    return np.square(weights[generator.permutation(rows)])


@pytest.mark.parametrize("keep", [0.9, 0.99])
@pytest.mark.parametrize("seed", range(5))
def test_near_the_optimum(seed: int, keep: float) -> None:
    problem = Problem(planted(6, 12, 2, 0.2, seed), 2, keep)
    solution = solve(problem)
    assert validate(problem, solution) == []
    best = optimum(problem)
    assert solution.bound <= best <= solution.vectors <= best + 2


def test_strays_are_dropped() -> None:
    """Without loss they would spoil the planted groups."""
    problem = Problem(planted(256, 300, 16, 0.02), 16, 0.99)
    clean = clustering.cluster(clustering.Problem(planted(256, 300, 16, 0.0) > 0, 16)).columns
    lossless = clustering.cluster(clustering.Problem(problem.energies > 0, 16)).columns
    solution = solve(problem)
    assert validate(problem, solution) == []
    assert solution.vectors <= clean < 0.8 * lossless
    assert solution.energy >= 0.99


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), st.integers(1, 12), st.integers(1, 8), st.floats(0.01, 1.0), st.integers(0, 9))
def test_any_problem(rows: int, columns: int, height: int, keep: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    energies = np.square(generator.standard_normal((rows, columns)) * (generator.random((rows, columns)) < 0.5))
    problem = Problem(energies, height, keep)
    solution = solve(problem)
    assert validate(problem, solution) == []
    assert solution.vectors <= (energies > 0).sum()
    assert (mask(problem, solution) <= (energies > 0)).all()
    assert energies[mask(problem, solution)].sum() >= (keep - 1e-6) * energies.sum()


def test_nothing_is_kept_of_zeros() -> None:
    problem = Problem(np.zeros((8, 5)), 4, 0.9)
    solution = solve(problem)
    assert (solution.vectors, solution.energy, bound(problem)) == (0, 1.0, 0)
    assert validate(problem, solution) == []


def test_the_validator_sees_too_little_energy() -> None:
    problem = Problem(planted(32, 20, 4, 0.1), 4, 0.95)
    solution = solve(problem)
    groups, columns = np.nonzero(solution.kept)
    fewer = solution.kept.copy()
    fewer[groups[0], columns[0]] = False
    wrong = lossy_clustering.Solution(solution.order, fewer, solution.energy, solution.vectors + 5)
    assert len(validate(problem, wrong)) >= 2
    assert validate(problem, lossy_clustering.Solution((0,) * 32, solution.kept, 1.0, 0))
