"""Hard problems of allocation: little room to spare, and many buffers alive at once."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from graphopt.solve.memory import Buffer, MemoryProblem, lower_bound, solve, validate

Draw = Callable[[random.Random], int]


def overlapping(count: int, steps: int, seed: int, life: Draw, size: Draw) -> MemoryProblem:
    """Buffers that start anywhere."""
    chance = random.Random(seed)
    buffers = []
    for _ in range(count):
        first = chance.randrange(steps)
        buffers.append(Buffer(64 * size(chance), first, min(steps - 1, first + life(chance))))
    return MemoryProblem(tuple(buffers))


def uniform(seed: int) -> MemoryProblem:
    return overlapping(250, 125, seed, lambda c: c.randrange(1, 52), lambda c: c.randrange(1, 1000))


def few_sizes(seed: int) -> MemoryProblem:
    return overlapping(450, 150, seed, lambda c: c.randrange(1, 12), lambda c: c.choice([3, 5, 7, 11]))


def long_and_short(seed: int) -> MemoryProblem:
    return overlapping(250, 250, seed, lambda c: c.choice([1, 2, 125]), lambda c: c.choice([1, 7, 500, 901]))


def pyramid(seed: int) -> MemoryProblem:
    """A training step: forward values wait for the backward pass, where gradients live shortly."""
    chance, count = random.Random(seed), 120
    waiting = [Buffer(64 * chance.randrange(1, 400), i, 2 * count - i) for i in range(count)]
    gradients = [Buffer(64 * chance.randrange(1, 400), 2 * count - i - 1, 2 * count - i + 1) for i in range(count)]
    return MemoryProblem((*waiting, *gradients))


def cut(seed: int, count: int = 250) -> MemoryProblem:
    """A rectangle cut into pieces: the lower bound is reached with no byte to spare, and only so."""
    chance = random.Random(seed)
    pieces = [(0, count // 2, 0, 2 * count)]
    while len(pieces) < count:
        left, right, low, high = pieces.pop(chance.randrange(len(pieces)))
        if chance.random() < 0.5 and right - left > 1:
            middle = chance.randrange(left + 1, right)
            pieces += [(left, middle, low, high), (middle, right, low, high)]
        elif high - low > 1:
            middle = chance.randrange(low + 1, high)
            pieces += [(left, right, low, middle), (left, right, middle, high)]
        else:
            pieces.append((left, right, low, high))
    chance.shuffle(pieces)
    return MemoryProblem(tuple(Buffer(64 * (high - low), left, right - 1) for left, right, low, high in pieces))


@pytest.mark.parametrize("family", [uniform, few_sizes, long_and_short, pyramid, cut], ids=lambda f: f.__name__)
@pytest.mark.parametrize("seed", range(2))
def test_the_arena_is_within_a_tenth_of_the_lower_bound(family: Callable[[int], MemoryProblem], seed: int) -> None:
    problem = family(seed)
    solution = solve(problem)
    assert validate(problem, solution) == []
    assert solution.arena_bytes <= 1.10 * lower_bound(problem)
