import math

from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.solve.layout import Problem, Solution, Value, brute_force, solve, validate

seconds = st.integers(0, 20).map(lambda n: n * 1e-6)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    count = draw(st.integers(1, 7))
    costs = []
    for _ in range(count):
        pair = (draw(seconds), draw(seconds))
        fixed = draw(st.sampled_from([None, None, 0, 1]))
        costs.append(pair if fixed is None else tuple(math.inf if i == fixed else c for i, c in enumerate(pair)))
    values = []
    for _ in range(draw(st.integers(0, 8))):
        producer = draw(st.one_of(st.none(), st.integers(0, count - 1)))
        consumers = draw(st.sets(st.integers(0, count - 1), max_size=4))
        values.append(Value(producer, tuple(sorted(consumers)), draw(seconds)))
    return Problem(tuple(costs), tuple(values))


@settings(max_examples=200, deadline=None)
@given(problems())
def test_the_minimum_cut_is_the_optimum(problem: Problem) -> None:
    solution = solve(problem)
    assert validate(problem, solution) == []
    assert math.isclose(solution.seconds, brute_force(problem), rel_tol=1e-6, abs_tol=1e-12)


CHAIN = Problem(
    ((1e-6, math.inf), (0.0, 1e-6), (math.inf, 0.0)),
    (Value(0, (1, 2), 5e-6), Value(1, (2,), 3e-6), Value(None, (0,), 1e-6)),
)


def test_a_conversion_is_paid_once() -> None:
    # Value 0 goes to a free node and a planar one; the free node may as well read the converted copy.
    solution = solve(CHAIN)
    assert solution.blocked == (True, False, False)
    assert math.isclose(solution.seconds, 8e-6)


def test_among_equals_the_fewest_blocked() -> None:
    problem = Problem(((0.0, 0.0), (0.0, 0.0)), (Value(0, (1,), 1e-6),))
    assert solve(problem).blocked == (False, False)


def test_validate_finds_faults() -> None:
    assert validate(CHAIN, Solution((True, False), 0.0)) == ["2 layouts for 3 nodes"]
    assert validate(CHAIN, Solution((False, False, False), 0.0)) == [
        "a node works on a layout that it does not support"
    ]
    assert "the solution says" in validate(CHAIN, Solution((True, False, False), 7e-6))[0]
