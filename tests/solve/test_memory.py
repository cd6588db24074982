from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.errors import SolverError
from graphopt.solve.memory import Buffer, MemoryProblem, MemorySolution, lower_bound, solve, validate


def problem(*buffers: tuple[int, int, int], alignment: int = 64) -> MemoryProblem:
    return MemoryProblem(tuple(Buffer(*buffer) for buffer in buffers), alignment)


def optimum(problem: MemoryProblem) -> int:
    """Brute force: some order in which every buffer is dropped to the lowest free offset gives the optimum."""
    best = sum(-(-buffer.size // problem.alignment) * problem.alignment for buffer in problem.buffers)
    for order in itertools.permutations(problem.buffers):
        placed: list[tuple[int, int, Buffer]] = []
        for buffer in order:
            at = 0
            for start, end, other in sorted(placed, key=lambda item: item[0]):
                if other.last < buffer.first or buffer.last < other.first:
                    continue
                if start - at >= buffer.size:
                    break
                at = max(at, end)
            end = at + -(-buffer.size // problem.alignment) * problem.alignment
            placed.append((at, end, buffer))
        best = min(best, max((end for _, end, _ in placed), default=0))
    return best


def rectangles(count: int, steps: int, height: int, seed: int) -> MemoryProblem:
    """A rectangle cut into pieces: the optimum is its height, with no byte to spare."""
    chance = random.Random(seed)
    pieces = [(0, steps, 0, height)]
    while len(pieces) < count:
        left, right, low, high = pieces.pop(chance.randrange(len(pieces)))
        if chance.random() < 0.5 and right - left > 1:
            cut = chance.randrange(left + 1, right)
            pieces += [(left, cut, low, high), (cut, right, low, high)]
        elif high - low > 1:
            cut = chance.randrange(low + 1, high)
            pieces += [(left, right, low, cut), (left, right, cut, high)]
        else:
            pieces.append((left, right, low, high))
    chance.shuffle(pieces)
    return problem(*((64 * (high - low), left, right - 1) for left, right, low, high in pieces))


def network(count: int) -> MemoryProblem:
    """A chain with a skip connection over every fourth step and scratch at every third."""
    chance = random.Random(count)
    buffers = []
    for step in range(count):
        last = step + (5 if step % 4 == 0 else 1)
        buffers.append((chance.randrange(1, 1 << 20), step, last))
        if step % 3 == 0:
            buffers.append((chance.randrange(1, 1 << 18), step, step))
    return problem(*buffers)


buffers = st.builds(
    lambda size, first, life: Buffer(size, first, first + life),
    st.integers(0, 700),
    st.integers(0, 6),
    st.integers(0, 4),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(buffers, max_size=6), st.sampled_from([1, 64]))
def test_small_problems_are_solved_to_the_optimum(items: list[Buffer], alignment: int) -> None:
    given_problem = MemoryProblem(tuple(items), alignment)
    solution = solve(given_problem)
    assert validate(given_problem, solution) == []
    assert solution.arena_bytes == optimum(given_problem)
    assert solution.optimal
    assert solution.lower_bound == lower_bound(given_problem)


@settings(max_examples=100, deadline=None)
@given(st.lists(buffers, max_size=40), st.integers(0, 20_000))
def test_every_solution_is_valid_and_the_same_again(items: list[Buffer], effort: int) -> None:
    given_problem = MemoryProblem(tuple(items))
    solution = solve(given_problem, effort)
    assert validate(given_problem, solution) == []
    assert solve(given_problem, effort) == solution


@pytest.mark.parametrize("seed", range(6))
def test_perfect_packings_of_twenty_buffers_are_found(seed: int) -> None:
    given_problem = rectangles(20, 20, 40, seed)
    solution = solve(given_problem)
    assert validate(given_problem, solution) == []
    assert (solution.arena_bytes, solution.optimal) == (40 * 64, True)


def test_the_bound_is_not_always_reached_and_the_search_proves_it() -> None:
    pieces = [(4, 0, 0), (3, 0, 1), (1, 1, 2), (2, 2, 2), (1, 2, 3), (3, 1, 3), (3, 3, 4), (4, 4, 4)]
    given_problem = problem(*((64 * size, first, last) for size, first, last in pieces))
    solution = solve(given_problem)
    assert validate(given_problem, solution) == []
    assert solution.lower_bound == 7 * 64
    assert solution.arena_bytes == optimum(given_problem) == 8 * 64
    assert solution.optimal


@pytest.mark.parametrize("count", [500, 2500])
def test_large_networks_come_within_a_hundredth_of_the_bound(count: int) -> None:
    given_problem = network(count)
    solution = solve(given_problem)
    assert validate(given_problem, solution) == []
    assert solution.arena_bytes <= 1.01 * solution.lower_bound


def test_many_buffers_alive_together() -> None:
    chance = random.Random(1)
    given_problem = problem(*((chance.randrange(1, 5000), step, 400 - step) for step in range(200)))
    solution = solve(given_problem)
    assert validate(given_problem, solution) == []
    assert solution.arena_bytes == solution.lower_bound


def test_nothing_and_nothing_but_empty_buffers() -> None:
    assert solve(problem()) == MemorySolution((), 0, 0, True, solve(problem()).method)
    empty = problem((0, 0, 3), (0, 1, 1))
    assert solve(empty).arena_bytes == 0
    assert validate(empty, solve(empty)) == []


def test_lower_bound_counts_aligned_bytes_and_the_last_step() -> None:
    assert lower_bound(problem((1, 0, 1), (65, 1, 2), (64, 2, 2))) == 192


@pytest.mark.parametrize("buffer", [(-1, 0, 0), (1, 2, 1)])
def test_impossible_buffers_are_refused(buffer: tuple[int, int, int]) -> None:
    with pytest.raises(SolverError, match="buffer 1 is not possible"):
        solve(problem((1, 0, 0), buffer))


def test_impossible_alignment() -> None:
    with pytest.raises(SolverError, match="alignment"):
        solve(problem((1, 0, 0), alignment=0))


def test_the_validator_sees_every_fault() -> None:
    given_problem = problem((64, 0, 1), (64, 1, 2), (64, 2, 3))
    good = MemorySolution((0, 64, 0), 128, 128, True, "")
    assert validate(given_problem, good) == []
    for change, reason in (
        ({"offsets": (0, 0, 64)}, "buffers 0 and 1 overlap"),
        ({"offsets": (0, 32, 0)}, "buffer 1 starts at 32"),
        ({"offsets": (0, 64, 128)}, "buffer 2 ends at 192"),
        ({"offsets": (-64, 64, 0)}, "buffer 0 starts at -64"),
        ({"offsets": (0, 64)}, "2 offsets for 3 buffers"),
        ({"arena_bytes": 64}, "128 bytes are live at step 1"),
        ({"lower_bound": 192}, "lower bound 192 is above"),
    ):
        assert any(reason in found for found in validate(given_problem, replace(good, **change))), reason
