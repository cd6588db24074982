"""Recomputation within a budget: right, within it, near the optimum, and refused where nothing fits."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.errors import SolverError
from graphopt.solve.recompute import boundaries, checkmate, greedy, solver
from graphopt.solve.recompute.plan import Evaluator
from graphopt.solve.recompute.problem import Operation, Problem, Solution
from graphopt.solve.recompute.validate import validate
from tests.helpers.recompute_problems import graph, training


def unlimited_peak(problem: Problem) -> int:
    evaluator = Evaluator(problem)
    plan = evaluator.plan(evaluator.expander.nothing())
    assert plan is not None
    return plan.peak


@pytest.mark.parametrize(("seed", "skips"), [(1, 0.0), (5, 0.3)])
@pytest.mark.parametrize("share", [0.75, 0.6])
def test_small_steps_come_within_two_percent_of_the_optimum(seed: int, skips: float, share: float) -> None:
    problem = training(6, seed, skips)
    limited = replace(problem, budget=int(unlimited_peak(problem) * share))
    optimum = checkmate.solve(limited, seconds=120)
    try:
        found = solver.solve(limited, effort=200_000)
    except solver.InfeasibleError:
        assert optimum is None
        return
    assert validate(limited, found) == []
    assert found.bound <= found.seconds
    if optimum is not None:  # else ours repeats in an order that Checkmate does not have
        assert validate(limited, optimum) == []
        assert found.seconds <= 1.02 * optimum.seconds
        assert found.bound <= optimum.seconds * (1 + 1e-6)


@pytest.mark.parametrize("share", [0.5, 0.33])
def test_large_steps_come_near_the_bound(share: float) -> None:
    problem = training(150, 4, 0.2, in_place=True)
    limited = replace(problem, budget=int(unlimited_peak(problem) * share))
    found = solver.solve(limited, effort=100_000)
    assert validate(limited, found) == []
    assert found.gap <= 0.06


def test_a_budget_that_suffices_repeats_nothing() -> None:
    problem = training(10)
    found = solver.solve(replace(problem, budget=unlimited_peak(problem)))
    assert found.sequence == tuple(range(len(problem.operations)))
    assert (found.gap, found.seconds) == (0.0, problem.seconds)


def test_the_same_problem_has_the_same_solution() -> None:
    problem = training(12, 3, 0.3)
    limited = replace(problem, budget=int(unlimited_peak(problem) * 0.6))
    assert solver.solve(limited, effort=20_000) == solver.solve(limited, effort=20_000)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 25), st.floats(0.3, 1.1))
def test_random_graphs_stay_within_the_budget_or_are_refused(seed: int, count: int, share: float) -> None:
    problem = graph(count, seed)
    limited = replace(problem, budget=max(1, int(unlimited_peak(problem) * share)))
    try:
        found = solver.solve(limited, effort=3_000)
    except solver.InfeasibleError as error:
        refused = error
    else:
        assert validate(limited, found) == []
        return
    assert refused.least.peak > limited.budget
    assert validate(problem, refused.least) == []


def test_the_bound_of_the_boundaries_is_below_the_optimum() -> None:
    problem = training(6, 9, 0.3)
    limited = replace(problem, budget=int(unlimited_peak(problem) * 0.7))
    optimum = checkmate.solve(limited, seconds=120)
    assert optimum is not None
    evaluator = Evaluator(limited)
    every = tuple(range(len(problem.operations)))
    few = boundaries.solve(evaluator, limited.budget, boundaries.choose(evaluator, 4))
    all_ = boundaries.solve(evaluator, limited.budget, every)
    whole = boundaries.solve(evaluator, limited.budget, every, whole=True)
    assert all(problem.seconds < each.bound <= optimum.seconds + 1e-6 for each in (few, all_, whole))
    assert all_.bound <= whole.bound + 1e-6


def test_too_little_for_one_operation_is_refused_with_the_least_found() -> None:
    problem = training(10, 2)
    limited = replace(problem, budget=solver.floor(problem) - 64)
    with pytest.raises(solver.InfeasibleError, match="the least that one needs is") as caught:
        solver.solve(limited, effort=1000)
    assert not caught.value.possible
    assert caught.value.least.peak >= solver.floor(problem)
    least = solver.least(problem, effort=50_000)
    assert least.peak <= caught.value.least.peak
    assert validate(problem, least) == []


def test_fast_plans_of_a_long_chain_need_about_the_square_root() -> None:
    """400 equal layers: a twelfth of the bytes for less than one more forward pass."""
    count = 400
    operations = [Operation((i,), (i + 1,), 1.0) for i in range(count)]
    operations += [Operation((count + i, count - i), (count + i + 1,), 2.0) for i in range(count)]
    problem = Problem(tuple(operations), (64,) * (2 * count + 1), frozenset([0]), frozenset([2 * count]))
    budget = unlimited_peak(problem) // 9
    best = greedy.solve(Evaluator(problem), budget)[0]
    assert best.peak <= budget
    assert best.seconds - problem.seconds <= count


def test_an_update_is_never_repeated_and_its_parameter_is_read_before() -> None:
    """Tensor 1 is a parameter of no bytes: both layers read it, the last operation writes over it."""
    operations = (
        Operation((0, 1), (2,), 1.0),
        Operation((2, 1), (3,), 1.0),
        Operation((3,), (4,), 1.0),
        Operation((4, 3), (5,), 1.0, recomputable=False),
        Operation((4, 1), (1,), 1.0, recomputable=False),
        Operation((5, 2), (6,), 1.0),
    )
    sizes = (64, 0, 1024, 1024, 64, 64, 64)
    problem = Problem(operations, sizes, frozenset([0, 1]), frozenset([6]), before=((0, 4), (1, 4)))
    limited = replace(problem, budget=2240)
    found = solver.solve(limited, effort=20_000)
    assert validate(limited, found) == []
    assert found.sequence.count(4) == 1
    last_reader = max(place for place, run in enumerate(found.sequence) if run in (0, 1))
    assert last_reader < found.sequence.index(4)


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (Problem((Operation((0,), (1,)),), (64, 64)), "reads tensor 0, which none before it writes"),
        (Problem((Operation((), (2,)),), (64,)), "a tensor that does not exist"),
        (Problem((Operation((), (0,), float("nan")),), (64,)), "takes nan s"),
        (Problem((Operation((), (0,), 1.0, -1),), (64,)), "-1 bytes of scratch"),
        (Problem((Operation((), (0,)),), (-64,)), "negative size"),
        (Problem((), (64,), wanted=frozenset([0])), "tensor 0 is wanted"),
        (Problem((Operation((), (0,)),) * 2, (64,), before=((1, 0),)), "breaks one of `before`"),
    ],
)
def test_problems_without_meaning(problem: Problem, reason: str) -> None:
    with pytest.raises(SolverError, match=reason):
        solver.solve(problem)


def test_checkmate_wants_one_writer() -> None:
    with pytest.raises(SolverError, match="several"):
        checkmate.solve(Problem((Operation((), (0,)), Operation((), (0,))), (64,)))


def test_the_validator_sees_every_fault() -> None:
    operations = (Operation((0,), (1,), 1.0), Operation((1,), (2,), 1.0, recomputable=False), Operation((2, 1), (3,)))
    problem = Problem(operations, (64, 64, 64, 64), frozenset([0]), frozenset([3]), ((0, 1),), budget=256)
    good = Solution((0, 1, 2), 192, 2.0, 2.0)
    assert validate(problem, good) == []
    for change, reason in (
        ({"sequence": (0, 1)}, "an operation never runs"),
        ({"sequence": (0, 1, 1, 2)}, "operation 1 runs 2 times"),
        ({"sequence": (0, 1, 0, 2)}, "operation 0 runs after operation 1"),
        ({"sequence": (1, 0, 2)}, "reads a part of tensor 1"),
        ({"peak": 128}, "192 bytes are live at once, not 128"),
        ({"seconds": 3.0}, "the runs take 2 s, not 3 s"),
        ({"bound": 2.5}, "the bound 2.5 s is above"),
    ):
        found = validate(problem, replace(good, **change))  # type: ignore[arg-type]
        assert any(reason in each for each in found), (reason, found)
    assert "more than the budget of 128" in validate(replace(problem, budget=128), good)[0]
    halves = Problem((Operation((), (0,)), Operation((), (0,)), Operation((0,), (1,))), (64, 64), wanted=frozenset([1]))
    assert "reads a part" in validate(halves, Solution((0, 1, 0, 2), 128, 0.0, 0.0))[0]
