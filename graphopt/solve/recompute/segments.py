"""The forward part cut into segments, these into parts, and so on, where few bytes cross."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from graphopt.solve.recompute.expand import HOLD, KEEP, REDO, hold
from graphopt.solve.recompute.plan import Evaluator


@dataclass(frozen=True)
class Nesting:
    """Cuts of the operations before position `middle`.

    `level[t]` is 1 for a tensor that crosses a cut between segments, 2 for one that crosses a cut between parts of a
    segment, and so on; others cross none. `slots` are those over `middle` whose tensor crosses no cut of level 1 and
    may be absent, and `reach[slot]` the positions that it is held for: as long as the part that it is in takes.
    """

    middle: int
    level: Mapping[int, int]
    slots: Sequence[int]
    reach: Mapping[int, int]


def nesting(evaluator: Evaluator, middle: int, shape: Sequence[int], held: bool = True) -> Nesting:
    """Cut the operations before `middle` into `shape[0]` segments, each into `shape[1]` parts, and so on.

    Args:
        held: otherwise nothing is held, and everything is made again for each use: least memory, most seconds.
    """
    expander, sizes = evaluator.expander, evaluator.problem.sizes
    first, last = _forward(evaluator, middle)
    places = _cuts(evaluator, middle, first, last, math.prod(shape))
    levels = [_level(number, shape) for number in range(1, len(places) + 1)]
    level: dict[int, int] = {}
    for place, depth in zip(places, levels, strict=True):
        for tensor, begin in first.items():
            if begin < place <= last[tensor]:
                level[tensor] = min(level.get(tensor, depth), depth)
    slots = [
        slot
        for slot, tensor in enumerate(expander.tensor)
        if expander.begin[slot] < middle <= expander.end[slot]
        and sizes[tensor]
        and level.get(tensor) != 1
        and expander.droppable(slot)
    ]
    deepest = len(shape) + 1
    ends: dict[tuple[int, int], list[int]] = {}
    part: dict[int, tuple[int, int]] = {}
    for slot in slots:
        tensor = expander.tensor[slot]
        depth = level.get(tensor, deepest) - 1  # held while the part one level up is worked on
        outer = [place for place, each in zip(places, levels, strict=True) if each <= depth]
        part[slot] = (depth, bisect.bisect_right(outer, first.get(tensor, -1)))
        ends.setdefault(part[slot], []).append(expander.end[slot])
    reach = {slot: max(ends[part[slot]]) - min(ends[part[slot]]) if held else 0 for slot in slots}
    return Nesting(middle, level, slots, reach)


def decisions_of(evaluator: Evaluator, nested: Nesting, slots: Sequence[int]) -> bytearray:
    """Decisions that make the tensors of `slots` again, and keep those that cross a cut between segments."""
    expander = evaluator.expander
    decisions = expander.nothing()
    starts = [*expander.starts, len(decisions)]
    for tensor, level in nested.level.items():
        low, high = starts[tensor], starts[tensor + 1]
        if level == 1:
            decisions[low:high] = bytes([KEEP] * (high - low))
        elif expander.end[high - 1] > expander.count:
            decisions[high - 1] = HOLD
    for slot in slots:
        decisions[slot] = hold(nested.reach[slot]) if nested.reach[slot] else REDO
    return decisions


def _forward(evaluator: Evaluator, middle: int) -> tuple[dict[int, int], list[int]]:
    """For the tensors written before `middle`: the first writer, and the last reader before it (-1 for none)."""
    expander = evaluator.expander
    first = {tensor: makers[0] for tensor, makers in enumerate(expander.writers) if makers and makers[0] < middle}
    last = [-1] * len(evaluator.problem.sizes)
    for place in range(middle):
        for tensor in expander.uses[place]:
            last[tensor] = place
    return first, last


def _level(number: int, shape: Sequence[int]) -> int:
    """The level of cut `number`, counted from 1: 1 where a segment ends, 2 where only a part of one does."""
    for depth in range(1, len(shape)):
        if number % math.prod(shape[depth:]) == 0:
            return depth
    return len(shape)


def _cuts(evaluator: Evaluator, middle: int, first: Mapping[int, int], last: Sequence[int], segments: int) -> list[int]:
    """Places between `segments` of about the same bytes made; within a third of one, where least crosses."""
    problem = evaluator.problem
    made = [sum(problem.sizes[tensor] for tensor in problem.operations[place].outputs) or 1 for place in range(middle)]
    crossing = [0] * (middle + 1)
    for tensor, begin in first.items():
        if last[tensor] > begin:
            crossing[begin + 1] += problem.sizes[tensor]
            crossing[last[tensor] + 1] -= problem.sizes[tensor]
    crossing = list(itertools.accumulate(crossing))
    before = list(itertools.accumulate(made, initial=0))
    places = []
    for number in range(1, segments):
        ideal, spread = before[-1] * number / segments, before[-1] / segments / 3
        low, high = bisect.bisect_left(before, ideal - spread), bisect.bisect_right(before, ideal + spread)
        near = range(max(1, low), min(max(high, low + 1), middle)) or range(middle - 1, middle)
        places.append(min(near, key=lambda place: (crossing[place], abs(before[place] - ideal))))
    return places
