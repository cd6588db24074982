"""The order of least memory: possible, never worse than the given one, and near the optimum of small graphs."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.solve import ordering
from graphopt.solve.recompute.problem import Operation, Problem, dependences
from tests.helpers.recompute_problems import graph, training


def optimum(problem: Problem) -> int:
    """The least peak over all orders, by dynamic programming over the sets of operations that may have run."""
    count = len(problem.operations)
    before, users = [0] * count, [0] * len(problem.sizes)
    for first, second in dependences(problem):
        before[second] |= (1 << first) & ~(1 << second)
    for index, operation in enumerate(problem.operations):
        for tensor in (*operation.inputs, *operation.outputs):
            users[tensor] |= 1 << index
    peaks = {0: 0}
    for _ in range(count):
        following: dict[int, int] = {}
        for done, peak in peaks.items():
            for index, operation in enumerate(problem.operations):
                if done >> index & 1 or before[index] & ~done:
                    continue
                now = done | 1 << index
                live = operation.scratch + sum(
                    size
                    for tensor, size in enumerate(problem.sizes)
                    if (tensor in problem.given or users[tensor] & now)
                    and (tensor in problem.wanted or users[tensor] & ~done)
                )
                following[now] = min(following.get(now, 1 << 60), max(peak, live))
        peaks = following
    return peaks[(1 << count) - 1]


def test_small_graphs_come_near_the_optimum() -> None:
    ratios = []
    for seed in range(25):
        problem = graph(11, seed, in_place=False)
        found = ordering.solve(problem)
        least = optimum(problem)
        assert least <= found.peak <= found.given_peak
        ratios.append(found.peak / least)
    assert sum(ratios) / len(ratios) <= 1.03
    assert max(ratios) <= 1.25


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.sets(st.integers(0, 39)))
def test_every_order_is_possible(seed: int, count: int, barriers: set[int]) -> None:
    problem = graph(count, seed)
    found = ordering.solve(problem, barriers)
    place = {operation: at for at, operation in enumerate(found.operations)}
    assert sorted(place) == list(range(count))
    assert all(place[first] < place[second] for first, second in dependences(problem) if first != second)
    for barrier in barriers & set(range(count)):
        assert {each for each in place if place[each] < place[barrier]} == set(range(barrier))


def test_updates_start_as_soon_as_their_gradient_exists() -> None:
    """Eight gradients, each consumed by an update (no output): given at the end, they move to their gradients."""
    operations = [Operation((index,), (index + 1,), 1.0) for index in range(8)]
    operations += [Operation((index + 1,), (9 + index,), 1.0) for index in range(8)]
    operations += [Operation((9 + index,), (), 1.0) for index in range(8)]
    problem = Problem(tuple(operations), (64,) * 9 + (4096,) * 8, frozenset([0]))
    found = ordering.solve(problem)
    assert found.given_peak >= 8 * 4096
    assert found.peak <= 4096 + 9 * 64


@pytest.mark.parametrize("layers", [1, 600])
def test_an_order_that_is_good_stays(layers: int) -> None:
    problem = training(layers)
    found = ordering.solve(problem, effort=0)
    assert found.peak <= found.given_peak
    if found.peak == found.given_peak:
        assert found.operations == tuple(range(len(problem.operations)))
