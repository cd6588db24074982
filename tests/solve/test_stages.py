from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.errors import SolverError
from graphopt.solve.stages import Crossing, StageProblem, boundary_bytes, lower_bound, solve, validate


def optimum(problem: StageProblem) -> tuple[float, int]:
    """Brute force over all cuts: (bottleneck, crossing bytes), counted tensor by tensor."""
    blocks = len(problem.costs)
    best = None
    for cuts in itertools.combinations(range(1, blocks), problem.stages - 1):
        stages = list(itertools.pairwise((0, *cuts, blocks)))
        bottleneck = max(sum(problem.costs[first:last]) for first, last in stages)
        crossing = sum(t.size for t in problem.tensors for cut in cuts if t.producer < cut <= t.last_consumer)
        best = min(best or (bottleneck, crossing), (bottleneck, crossing))
    assert best is not None
    return best


@st.composite
def random_problems(draw: st.DrawFn) -> StageProblem:
    blocks = draw(st.integers(1, 9))
    costs = draw(st.lists(st.integers(0, 6).map(lambda n: n / 4), min_size=blocks, max_size=blocks))
    ends = st.tuples(st.integers(0, blocks - 1), st.integers(0, blocks - 1)).map(sorted)
    tensors = draw(st.lists(st.builds(lambda size, e: Crossing(size, *e), st.integers(0, 9), ends), max_size=12))
    return StageProblem(tuple(costs), tuple(tensors), draw(st.integers(1, blocks)))


@settings(max_examples=300, deadline=None)
@given(random_problems())
def test_the_answer_is_that_of_brute_force(problem: StageProblem) -> None:
    solution = solve(problem)
    assert validate(problem, solution) == []
    assert (solution.bottleneck, solution.crossing_bytes) == optimum(problem)
    assert solution.bottleneck >= solution.lower_bound * (1 - 1e-12)


def test_a_skip_connection_is_charged_at_every_boundary() -> None:
    chain = tuple(Crossing(10, block, block + 1) for block in range(3))
    problem = StageProblem((1.0, 1.0, 1.0, 1.0), (*chain, Crossing(7, 0, 3)), 4)
    solution = solve(problem)
    assert solution.cuts == (1, 2, 3)
    assert solution.crossing_bytes == 3 * 10 + 3 * 7
    assert boundary_bytes(problem) == (0, 17, 17, 17)


def test_bytes_decide_between_equal_bottlenecks() -> None:
    costs = (2.0, 1.0, 0.0, 0.0, 3.0)
    tensors = (Crossing(100, 0, 1), Crossing(50, 1, 2), Crossing(5, 2, 3), Crossing(60, 3, 4))
    solution = solve(StageProblem(costs, tensors, 2))
    assert (solution.cuts, solution.bottleneck, solution.crossing_bytes) == ((3,), 3.0, 5)


def test_equal_costs_that_floating_point_sums_would_tell_apart() -> None:
    solution = solve(StageProblem((0.1,) * 12, (), 4))
    assert solution.cuts == (3, 6, 9)
    assert validate(StageProblem((0.1,) * 12, (), 4), solution) == []


def test_one_stage_and_one_block_per_stage() -> None:
    problem = StageProblem((1.0, 2.0, 3.0), (Crossing(8, 0, 2),), 1)
    assert solve(problem).cuts == ()
    assert solve(problem).ranges(3) == (range(3),)
    assert solve(replace(problem, stages=3)).ranges(3) == (range(1), range(1, 2), range(2, 3))


def test_many_blocks() -> None:
    costs = tuple(float(1 + (7 * block) % 13) for block in range(400))
    problem = StageProblem(costs, tuple(Crossing(1 + block % 5, block, block + 1) for block in range(399)), 8)
    solution = solve(problem)
    assert validate(problem, solution) == []
    assert solution.bottleneck <= 1.05 * lower_bound(problem)


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (StageProblem((1.0, 1.0), (), 3), "3 stages need at least as many blocks, and there are 2"),
        (StageProblem((), (), 1), "there are 0"),
        (StageProblem((1.0,), (), 0), "0 stages are not possible"),
        (StageProblem((1.0, -1.0), (), 1), "block 1 has the cost -1.0"),
        (StageProblem((float("nan"),), (), 1), "block 0 has the cost nan"),
        (StageProblem((float("inf"),), (), 1), "block 0 has the cost inf"),
        (StageProblem((1.0, 1.0), (Crossing(1, 1, 0),), 1), "not possible between 2 blocks"),
        (StageProblem((1.0, 1.0), (Crossing(1, 0, 2),), 1), "not possible between 2 blocks"),
        (StageProblem((1.0, 1.0), (Crossing(-1, 0, 1),), 1), "not possible between 2 blocks"),
    ],
)
def test_impossible_problems_are_named(problem: StageProblem, reason: str) -> None:
    with pytest.raises(SolverError, match=reason):
        solve(problem)


def test_the_validator_sees_every_fault() -> None:
    problem = StageProblem((1.0, 2.0, 3.0), (Crossing(4, 0, 2),), 2)
    good = solve(problem)
    assert validate(problem, good) == []
    for change, reason in (
        ({"cuts": ()}, "1 stages, and 2"),
        ({"cuts": (0,)}, "without a block"),
        ({"cuts": (3,)}, "without a block"),
        ({"cuts": (1,)}, "largest stage costs 5"),
        ({"crossing_bytes": 0}, "4 bytes cross"),
        ({"lower_bound": 9.0}, "lower bound 9.0"),
    ):
        assert any(reason in found for found in validate(problem, replace(good, **change))), reason
