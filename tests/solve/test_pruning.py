"""The fastest choice within a budget against trying all of them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.errors import SolverError
from graphopt.solve import pruning
from graphopt.solve.pruning import Option, Problem, Solution, solve, validate

numbers = st.one_of(st.integers(0, 6).map(float), st.integers(0, 6000).map(lambda number: number / 1000))
options = st.builds(Option, numbers, numbers)
problems = st.builds(
    Problem,
    st.lists(st.lists(options, min_size=1, max_size=4).map(tuple), min_size=1, max_size=5).map(tuple),
    numbers,
)


def best(problem: Problem) -> float | None:
    found = [
        math.fsum(each.seconds for each in choice)
        for choice in itertools.product(*problem.layers)
        if math.fsum(each.loss for each in choice) <= problem.budget + 1e-12 * max(1.0, problem.budget)
    ]
    return min(found, default=None)


@given(problems)
@settings(max_examples=300, deadline=None)
def test_no_choice_is_faster(problem: Problem) -> None:
    optimum = best(problem)
    if optimum is None:
        with pytest.raises(SolverError, match="every choice loses"):
            solve(problem)
        return
    solution = solve(problem)
    assert validate(problem, solution) == []
    assert solution.seconds == pytest.approx(optimum, rel=1e-9, abs=1e-12)
    assert solution.gap == 0


@given(problems, st.integers(1, 3))
@settings(max_examples=100, deadline=None)
def test_what_is_dropped_shows_in_the_gap(problem: Problem, most: int) -> None:
    optimum = best(problem)
    if optimum is None:
        return
    before, pruning.MOST = pruning.MOST, most
    try:
        solution = solve(problem)
    finally:
        pruning.MOST = before
    assert validate(problem, solution) == []
    assert solution.bound <= optimum * (1 + 1e-9) + 1e-12
    assert solution.seconds >= optimum * (1 - 1e-9) - 1e-12


def test_two_hundred_layers_are_solved_to_the_end() -> None:
    generator = np.random.default_rng(0)
    layers = tuple(
        tuple(
            Option(float(scale * (1 - 0.9 * k / 7) ** 1.2), float(generator.uniform(0.5, 1.5) * (k / 7) ** 3))
            for k in range(8)
        )
        for scale in generator.uniform(1e-5, 1e-3, 200)
    )
    problem = Problem(layers, 10.0)
    solution = solve(problem)
    assert validate(problem, solution) == []
    assert solution.gap < 1e-4


def test_the_validator_sees_what_is_wrong() -> None:
    problem = Problem(((Option(2.0, 0.0), Option(1.0, 1.0)),), 0.5)
    right = solve(problem)
    assert right == Solution((0,), 2.0, 0.0, 2.0)
    for wrong, word in (
        (Solution((1,), 1.0, 1.0, 1.0), "budget"),
        (Solution((2,), 1.0, 1.0, 1.0), "no option 2"),
        (Solution((), 1.0, 1.0, 1.0), "0 choices"),
        (Solution((0,), 1.0, 0.0, 1.0), "takes 2 s"),
        (Solution((0,), 2.0, 0.1, 1.0), "loses 0"),
        (Solution((0,), 2.0, 0.0, 3.0), "bound"),
    ):
        assert any(word in reason for reason in validate(problem, wrong)), word


@pytest.mark.parametrize(
    ("layers", "budget", "sentence"),
    [
        (((),), 1.0, "layer 0 has no option"),
        (((Option(math.nan, 0.0),),), 1.0, "numbers from 0 on"),
        (((Option(1.0, -1.0),),), 1.0, "numbers from 0 on"),
        (((Option(1.0, 2.0),),), 1.0, "every choice loses 2 or more"),
        (((Option(1.0, 2.0),),), math.nan, "every choice loses 2 or more"),
    ],
)
def test_bad_problems(layers: tuple[tuple[Option, ...], ...], budget: float, sentence: str) -> None:
    with pytest.raises(SolverError, match=sentence):
        solve(Problem(layers, budget))
