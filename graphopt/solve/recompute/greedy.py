"""Fast plans: keep what crosses a few places of the forward part, make the rest again, and the cheapest first.

A training step needs most at its loss. Every tensor that waits there for its use in the backward part may be absent
meanwhile. The forward part is cut into segments where few bytes cross (sqrt(n) of them in Chen, "Training Deep Nets
with Sublinear Memory Cost", 2016; here several numbers are tried), and what crosses is kept. Of the others, those that
free most bytes for a second of repeated work go first, as many as the budget wants.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence

from graphopt.solve.recompute.expand import HOLD, KEEP, REDO
from graphopt.solve.recompute.plan import Evaluator, Plan

SEGMENTS = (1, 2, 3, 4, 6, 8, 12, 18, 27, 40)
"""Numbers of segments that are tried."""


def solve(evaluator: Evaluator, budget: int, tries: int = 7) -> list[Plan]:
    """Plans of several numbers of segments, the best one first; one that fits is not guaranteed.

    Args:
        tries: bisection steps over how many tensors are made again, for each number of segments.
    """
    start = evaluator.plan(evaluator.expander.nothing())
    assert start is not None
    if start.peak <= budget:
        return [start]
    found = [start]
    middle = start.peak_place
    for pattern in (HOLD, REDO):
        for segments in SEGMENTS:
            if segments > max(middle // 2, 1):
                break
            found += _fewest(evaluator, budget, cuts(evaluator, middle, segments), middle, pattern, tries)
    found.sort(key=lambda plan: (plan.excess(budget), plan.seconds, plan.peak))
    return found


def _fewest(evaluator: Evaluator, budget: int, kept: set[int], middle: int, pattern: int, tries: int) -> Iterator[Plan]:
    """Plans that make ever fewer tensors again and fit, by bisection; if none fits, the one that makes all again."""
    ranked = ranking(evaluator, kept, middle)
    low, high = 0, len(ranked)
    plan = evaluator.plan(_decisions(evaluator, kept, ranked, pattern))
    if plan is None:
        return
    yield plan
    if plan.peak > budget:
        return
    for _ in range(tries):
        if high - low < 2:
            break
        some = (low + high) // 2
        plan = evaluator.plan(_decisions(evaluator, kept, ranked[:some], pattern))
        if plan is not None and plan.peak <= budget:
            yield plan
            high = some
        else:
            low = some


def _decisions(evaluator: Evaluator, kept: set[int], slots: Sequence[int], pattern: int) -> bytearray:
    expander = evaluator.expander
    decisions = expander.nothing()
    for tensor in kept:
        decisions[expander.starts[tensor] : _after(expander.starts, tensor, len(decisions))] = bytes(
            [KEEP] * (_after(expander.starts, tensor, len(decisions)) - expander.starts[tensor])
        )
    for slot in slots:
        decisions[slot] = pattern
    return decisions


def _after(starts: Sequence[int], tensor: int, total: int) -> int:
    return starts[tensor + 1] if tensor + 1 < len(starts) else total


def ranking(evaluator: Evaluator, kept: set[int], middle: int) -> list[int]:
    """Slots over position `middle` whose tensor can be made again, those first that free most bytes for a second."""
    expander, problem = evaluator.expander, evaluator.problem
    slots = [
        slot
        for slot, tensor in enumerate(expander.tensor)
        if expander.begin[slot] < middle <= expander.end[slot]
        and problem.sizes[tensor]
        and tensor not in kept
        and expander.droppable(slot)
    ]
    costs = again_seconds(evaluator, kept, middle)
    return sorted(slots, key=lambda slot: (costs[expander.tensor[slot]] / problem.sizes[expander.tensor[slot]], slot))


def again_seconds(evaluator: Evaluator, kept: set[int], middle: int) -> list[float]:
    """Seconds to make each tensor again after `middle`: its writers, and those of what they read that is gone."""
    expander, problem = evaluator.expander, evaluator.problem
    seconds = [0.0] * len(problem.sizes)
    present = set(kept) | problem.given
    present |= {
        expander.tensor[slot]
        for slot in range(len(expander.tensor))
        if expander.begin[slot] < middle <= expander.end[slot] <= expander.count
    }
    for operation in problem.operations[:middle]:
        own = operation.seconds + sum(seconds[tensor] for tensor in operation.inputs if tensor not in present)
        for tensor in operation.outputs:
            seconds[tensor] += own
    return seconds


def cuts(evaluator: Evaluator, middle: int, segments: int) -> set[int]:
    """Tensors that cross from one segment of the operations before `middle` to the next.

    The segments make about the same number of bytes; within a third of one the place where least crosses is taken.
    """
    expander, problem = evaluator.expander, evaluator.problem
    if segments < 2:
        return set()
    last = [-1] * len(problem.sizes)
    made: list[int] = []
    for place in range(middle):
        for tensor in expander.reads[place]:
            last[tensor] = place
        made.append(sum(problem.sizes[tensor] for tensor in problem.operations[place].outputs) or 1)
    crossing = [0] * (middle + 1)
    first = {tensor: makers[0] for tensor, makers in enumerate(expander.writers) if makers and makers[0] < middle}
    for tensor, begin in first.items():
        if last[tensor] > begin:
            crossing[begin + 1] += problem.sizes[tensor]
            crossing[last[tensor] + 1] -= problem.sizes[tensor]
    crossing = list(itertools.accumulate(crossing))
    before = list(itertools.accumulate(made, initial=0))
    kept: set[int] = set()
    for number in range(1, segments):
        ideal = before[-1] * number / segments
        spread = before[-1] / segments / 3
        low, high = bisect.bisect_left(before, ideal - spread), bisect.bisect_right(before, ideal + spread)
        places = range(max(1, low), min(max(high, low + 1), middle))
        if places:
            at = min(places, key=lambda place: (crossing[place], abs(before[place] - ideal)))
            kept |= {tensor for tensor, begin in first.items() if begin < at <= last[tensor]}
    return kept
