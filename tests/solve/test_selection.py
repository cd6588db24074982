import dataclasses
import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.errors import SolverError
from graphopt.solve.selection import (
    Alternative,
    Problem,
    Solution,
    Tensor,
    error_of,
    greedy,
    single_layout,
    solve,
    total,
    validate,
)

seconds = st.integers(0, 20).map(lambda n: n * 1e-6)
PLANAR, BLOCKED = 0, 1


def brute_force(problem: Problem) -> float:
    """The least seconds over all choices within the budget, infinity if there is none."""
    choices = itertools.product(*(range(len(options)) for options in problem.alternatives))
    allowed = (chosen for chosen in choices if error_of(problem, chosen) <= problem.error_budget)
    return min((total(problem, chosen) for chosen in allowed), default=math.inf)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    layouts = draw(st.integers(2, 3))
    count = draw(st.integers(1, 6))
    layout = st.integers(0, layouts - 1)
    alternative = st.builds(Alternative, layout, layout, seconds, st.sampled_from([0.0, 0.0, 1e-7, 3e-7]))
    nodes = tuple(tuple(draw(st.lists(alternative, min_size=1, max_size=3))) for _ in range(count))
    tensors = []
    for _ in range(draw(st.integers(0, 7))):
        producer = draw(st.integers(0, count - 1))
        consumers = tuple(sorted(draw(st.sets(st.integers(0, count - 1), max_size=4))))
        table = tuple(tuple(draw(seconds) for _ in range(layouts)) for _ in range(layouts))
        tensors.append(Tensor(producer, consumers, table))
    return Problem(nodes, tuple(tensors), layouts)


@settings(max_examples=150, deadline=None)
@given(problems())
def test_the_choice_is_the_optimum(problem: Problem) -> None:
    solution = solve(problem)
    assert validate(problem, solution) == []
    assert math.isclose(solution.seconds, brute_force(problem), rel_tol=1e-9, abs_tol=1e-12)
    assert solution.gap == pytest.approx(0.0, abs=1e-6)


@settings(max_examples=80, deadline=None)
@given(problems(), st.sampled_from([1e-7, 3e-7, 5e-7]))
def test_the_error_budget_is_kept_at_the_least_cost(problem: Problem, budget: float) -> None:
    problem = dataclasses.replace(problem, error_budget=budget)
    best = brute_force(problem)
    if math.isinf(best):
        with pytest.raises(SolverError, match="error budget"):
            solve(problem)
        return
    solution = solve(problem)
    assert validate(problem, solution) == []
    assert error_of(problem, solution.chosen) <= budget * (1 + 1e-9)
    assert math.isclose(solution.seconds, best, rel_tol=1e-9, abs_tol=1e-12)


@settings(max_examples=60, deadline=None)
@given(problems())
def test_no_ablation_beats_it(problem: Problem) -> None:
    best = solve(problem)
    every = range(len(problem.alternatives))
    for other in (greedy(problem, every), single_layout(problem, every), greedy(problem, [0])):
        assert other.seconds == pytest.approx(total(problem, other.chosen))
        assert other.seconds >= best.seconds - 1e-12


FREE = ((0.0, 4e-6), (4e-6, 0.0))
PAIR = (Alternative(PLANAR, PLANAR, 3e-6), Alternative(BLOCKED, BLOCKED, 1e-6))
OUTSIDE = (Alternative(PLANAR, PLANAR, 0.0),)


def test_a_conversion_is_shared_and_weighed() -> None:
    # outside -> 1, 2 -> 3 -> outside: blocked gains 2 us per node, the two conversions cost 4 us each.
    tensors = (Tensor(0, (1, 2), FREE), Tensor(1, (3,), FREE), Tensor(2, (3,), FREE), Tensor(3, (0,), FREE))
    for nodes, blocked in ((3, False), (5, True)):
        chain = tuple(Tensor(2 + i, (3 + i,), FREE) for i in range(1, nodes - 2))
        problem = Problem(
            (OUTSIDE, *(PAIR,) * nodes), (*tensors[:3], *chain, Tensor(nodes, (0,), FREE)) if nodes > 3 else tensors
        )
        assert set(solve(problem).chosen[1:]) == {int(blocked)}


def test_greedy_pays_for_the_conversions_it_did_not_see() -> None:
    problem = Problem((OUTSIDE, PAIR), (Tensor(0, (1,), FREE), Tensor(1, (0,), FREE)))
    assert solve(problem).seconds == pytest.approx(3e-6)
    assert greedy(problem, [1]).seconds == pytest.approx(9e-6)
    assert single_layout(problem, [1]).seconds == pytest.approx(3e-6)


def test_validate_finds_faults() -> None:
    problem = Problem((OUTSIDE, PAIR), (Tensor(0, (1,), FREE),), error_budget=1e-7)
    assert validate(problem, Solution((0,), 0.0, 0.0)) == ["1 choices for 2 nodes"]
    assert validate(problem, Solution((0, 2), 0.0, 0.0)) == ["node 1 has no alternative 2"]
    assert "the solution says" in validate(problem, Solution((0, 0), 1e-6, 0.0))[0]
    assert "the bound" in validate(problem, Solution((0, 0), 3e-6, 4e-6))[0]


def test_impossible() -> None:
    with pytest.raises(SolverError, match="no choice"):
        solve(Problem(((Alternative(PLANAR, PLANAR, math.inf),),), ()))
