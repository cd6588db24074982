"""From decisions to sequences: f0 f1 f2 f3 and their gradients g3 g2 g1 g0, where g_i reads what f_i wrote."""

from __future__ import annotations

import pytest

from graphopt.solve.recompute.expand import HOLD, KEEP, REDO, Expander, hold
from graphopt.solve.recompute.problem import Operation, Problem

LAYERS = 4
NAMES = [*(f"f{i}" for i in range(LAYERS)), *(f"g{i}" for i in reversed(range(LAYERS)))]


def chain(**changes: object) -> Problem:
    """Tensor i + 1 is written by f_i and read by f_(i+1) and g_i; gradients follow."""
    operations = [Operation((i,), (i + 1,), 1.0) for i in range(LAYERS)]
    operations += [Operation((LAYERS + place, LAYERS - place), (LAYERS + place + 1,), 1.0) for place in range(LAYERS)]
    return Problem(tuple(operations), (64,) * (2 * LAYERS + 1), frozenset([0]), frozenset([2 * LAYERS]), **changes)  # type: ignore[arg-type]


def sequence(problem: Problem, decisions: dict[int, int]) -> str:
    """The sequence where the tensors of `decisions` are absent between their last use forwards and their gradient."""
    expander = Expander(problem)
    chosen = expander.nothing()
    for tensor, decision in decisions.items():
        slots = range(expander.starts[tensor], expander.starts[tensor + 1] - 1)
        chosen[max(slots, key=lambda slot: expander.end[slot] - expander.begin[slot])] = decision
    runs = expander.run(chosen)
    assert runs is not None
    return " ".join(NAMES[run] for run in runs)


@pytest.mark.parametrize(
    ("decisions", "expected"),
    [
        ({}, "f0 f1 f2 f3 g3 g2 g1 g0"),
        ({1: KEEP}, "f0 f1 f2 f3 g3 g2 g1 g0"),
        ({1: HOLD}, "f0 f1 f2 f3 g3 g2 g1 f0 g0"),
        ({1: HOLD, 2: HOLD, 3: HOLD}, "f0 f1 f2 f3 g3 f0 f1 f2 g2 g1 g0"),
        ({1: REDO, 2: REDO, 3: REDO}, "f0 f1 f2 f3 g3 f0 f1 f2 g2 f0 f1 g1 f0 g0"),
        ({1: KEEP, 2: REDO, 3: REDO}, "f0 f1 f2 f3 g3 f1 f2 g2 f1 g1 g0"),
        ({1: hold(1), 2: HOLD, 3: HOLD}, "f0 f1 f2 f3 g3 f0 f1 f2 g2 g1 f0 g0"),
    ],
)
def test_decisions(decisions: dict[int, int], expected: str) -> None:
    assert sequence(chain(), decisions) == expected


def test_what_must_run_once_is_kept() -> None:
    problem = chain()
    operations = list(problem.operations)
    operations[0] = Operation((0,), (1,), 1.0, recomputable=False)
    fixed = Problem(tuple(operations), problem.sizes, problem.given, problem.wanted)
    assert sequence(fixed, {1: HOLD}) == "f0 f1 f2 f3 g3 g2 g1 g0"


def test_nothing_is_made_again_behind_what_must_follow_it() -> None:
    """f1 reads a parameter that g2 updates: what f1 made is kept from there on, and made again before."""
    problem = chain(before=((1, 5),))
    assert sequence(problem, {2: HOLD}) == "f0 f1 f2 f3 g3 g2 g1 g0"
    assert sequence(problem, {2: HOLD, 3: HOLD}) == "f0 f1 f2 f3 g3 f1 f2 g2 g1 g0"


def test_a_tensor_of_several_parts_is_made_again_by_all_its_writers() -> None:
    operations = (
        Operation((0,), (1,), 1.0),
        Operation((0,), (1,), 1.0),
        Operation((1,), (2,), 1.0),
        Operation((2,), (3,), 1.0),
        Operation((1, 3), (4,), 1.0),
    )
    problem = Problem(operations, (64, 640, 64, 64, 64), frozenset([0]), frozenset([4]))
    expander = Expander(problem)
    decisions = expander.nothing()
    decisions[expander.starts[1] + 2] = HOLD  # from its first reader to its second
    assert expander.run(decisions) == [0, 1, 2, 3, 0, 1, 4]
    assert not expander.droppable(expander.starts[1])  # between the writers


def test_a_sequence_without_end_is_given_up() -> None:
    count = 400
    operations = [Operation((i,), (i + 1,), 1.0) for i in range(count)]
    operations += [Operation((count + i, count - i), (count + i + 1,), 1.0) for i in range(count)]
    problem = Problem(tuple(operations), (64,) * (2 * count + 1), frozenset([0]), frozenset([2 * count]))
    expander = Expander(problem)
    decisions = bytearray(REDO if expander.droppable(slot) else KEEP for slot in range(len(expander.end)))
    assert expander.run(decisions) is None
