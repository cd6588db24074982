"""The exact lifetimes of sequences, against the count of the validator, which shares no code."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.solve.recompute.liveness import Simulator
from graphopt.solve.recompute.plan import Evaluator
from graphopt.solve.recompute.problem import Operation, Problem, Solution
from graphopt.solve.recompute.repetitions import _Search
from graphopt.solve.recompute.validate import validate
from tests.helpers.recompute_problems import graph, training


def relu_chain(in_place: bool) -> Problem:
    """x -> a -> b (may be a's bytes) -> c, which reads b and x."""
    pairs = ((1, 2),) if in_place else ()
    operations = (Operation((0,), (1,)), Operation((1,), (2,), in_place=pairs), Operation((2, 0), (3,), scratch=64))
    return Problem(operations, (64, 256, 256, 64), frozenset([0]), frozenset([3]))


def test_bytes_of_every_step() -> None:
    lifetimes = Simulator(relu_chain(in_place=False)).run((0, 1, 2))
    assert lifetimes.live.tolist() == [64, 64 + 256, 64 + 256 + 256, 64 + 256 + 64 + 64, 64]


def test_an_output_in_place_takes_no_bytes_of_its_own() -> None:
    lifetimes = Simulator(relu_chain(in_place=True)).run((0, 1, 2))
    assert lifetimes.live.tolist() == [64, 64 + 256, 64 + 256, 64 + 256 + 64 + 64, 64]
    ((old, new),) = lifetimes.merged.tolist()
    assert (lifetimes.tensors[old], lifetimes.tensors[new]) == (1, 2)


def test_nothing_is_written_over_what_is_read_later_or_was_given() -> None:
    later = Problem(
        (Operation((0,), (1,), in_place=((0, 1),)), Operation((1,), (2,), in_place=((1, 2),)), Operation((1, 2), (3,))),
        (64, 64, 64, 64),
        frozenset([0]),
        frozenset([3]),
    )
    assert len(Simulator(later).run((0, 1, 2)).merged) == 0


def test_a_repetition_begins_a_new_version_and_the_old_one_ends_at_its_last_reader() -> None:
    operations = (
        Operation((0,), (1,)),
        Operation((1,), (2,)),
        Operation((2,), (3,)),
        Operation((3, 1), (4,)),
    )
    problem = Problem(operations, (64, 1024, 64, 64, 64), frozenset([0]), frozenset([4]))
    lifetimes = Simulator(problem).run((0, 1, 2, 0, 3))
    lives = [
        (first, last)
        for tensor, first, last in zip(lifetimes.tensors, lifetimes.first, lifetimes.last, strict=True)
        if tensor == 1
    ]
    assert lives == [(1, 2), (4, 5)]
    assert lifetimes.live.tolist()[3] == 64 * 3  # x, which is read again, and both results between


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 25), st.booleans())
def test_the_peak_is_that_of_the_validator_with_any_repetitions(seed: int, count: int, in_place: bool) -> None:
    problem = graph(count, seed, in_place)
    evaluator = Evaluator(problem)
    search, chance = _Search(evaluator), random.Random(seed)
    repeated: frozenset[tuple[int, int]] = frozenset()
    for _ in range(6 if search.tensors else 0):
        repeated = search.changed(repeated, chance)
    plan = search.plan(repeated)
    assert validate(problem, Solution(plan.sequence, plan.peak, plan.seconds, 0.0)) == []


@pytest.mark.parametrize("seed", range(3))
def test_repetitions_are_read_back_from_a_sequence(seed: int) -> None:
    evaluator = Evaluator(training(8, seed, 0.3))
    search, chance = _Search(evaluator), random.Random(seed)
    repeated: frozenset[tuple[int, int]] = frozenset()
    for _ in range(10):
        repeated = search.changed(repeated, chance)
    assert search.plan(search.of(search.plan(repeated).sequence)).sequence == search.plan(repeated).sequence


def test_nothing_at_all() -> None:
    assert Simulator(Problem((), ())).run(()).peak == 0
    assert Simulator(Problem((Operation((), (), scratch=64),), ())).run((0,)).peak == 64
