"""Fast plans: keep what crosses a few places of the forward part, make the rest again, and the cheapest first.

A training step needs most at its loss. Every tensor that waits there for its use in the backward part may be absent
meanwhile. The forward part is cut into segments where few bytes cross, and what crosses is kept (sqrt(n) segments in
Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016; here several numbers are tried). A segment may be
cut again: what crosses those cuts is made again once for the whole segment, and the rest once for its part of it. Of
what may be absent, tensors that free most bytes for a second of repeated work go first, as many as the budget wants.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from graphopt.solve.recompute.plan import Evaluator, Plan
from graphopt.solve.recompute.segments import Nesting, decisions_of, nesting

SINGLE = tuple((count,) for count in (1, 2, 3, 4, 6, 8, 12, 18, 27, 40))
"""Numbers of segments that are tried."""

NESTED = (
    (2, 2),
    (3, 3),
    (2, 8),
    (8, 2),
    (5, 5),
    (10, 10),
    *((2,) * depth for depth in (3, 4, 6, 8)),
    (3,) * 3,
    (4,) * 4,
)
"""Numbers of segments, of parts of each, and so on, that are tried where those do not suffice."""

DEAR = 1.1
"""Plans without nesting suffice if one fits that takes at most this many times the seconds without recomputation."""


def solve(evaluator: Evaluator, budget: int, tries: int = 6) -> list[Plan]:
    """Plans of several numbers of segments, the best one first; none need fit.

    Args:
        tries: bisection steps over how many tensors are made again, for each number of segments.
    """
    start = evaluator.plan(evaluator.expander.nothing())
    assert start is not None
    found = [start]
    if start.peak <= budget:
        return found
    middle = start.peak_place
    for shapes, held in ((SINGLE, True), (NESTED, True), (SINGLE, False)):
        for shape in shapes:
            if math.prod(shape) <= max(middle // 2, 1):
                found += _fewest(evaluator, budget, nesting(evaluator, middle, shape, held), tries)
        found.sort(key=lambda plan: (plan.excess(budget), plan.seconds, plan.peak))
        if found[0].peak <= budget and found[0].seconds <= DEAR * start.seconds:
            break
    return found


def _fewest(evaluator: Evaluator, budget: int, nested: Nesting, tries: int) -> Iterator[Plan]:
    """Plans that make ever fewer tensors again and fit, by bisection; if none fits, the one that makes all again."""
    ranked = ranking(evaluator, nested)
    low, high = 0, len(ranked)
    plan = evaluator.plan(decisions_of(evaluator, nested, ranked))
    if plan is None:
        return
    yield plan
    if plan.peak > budget:
        return
    for _ in range(tries):
        if high - low < 2:
            break
        some = (low + high) // 2
        plan = evaluator.plan(decisions_of(evaluator, nested, ranked[:some]))
        if plan is not None and plan.peak <= budget:
            yield plan
            high = some
        else:
            low = some


def ranking(evaluator: Evaluator, nested: Nesting) -> list[int]:
    """The slots that may be absent, those first that free most bytes for a second."""
    expander, sizes = evaluator.expander, evaluator.problem.sizes
    costs = again_seconds(evaluator, nested.level, nested.middle)
    return sorted(nested.slots, key=lambda slot: (costs[expander.tensor[slot]] / sizes[expander.tensor[slot]], slot))


def again_seconds(evaluator: Evaluator, kept: Mapping[int, int], middle: int) -> Sequence[float]:
    """Seconds to make each tensor again after `middle`: its writers, and those of what they read that is gone."""
    expander, problem = evaluator.expander, evaluator.problem
    seconds = [0.0] * len(problem.sizes)
    present = {tensor for tensor, level in kept.items() if level == 1} | problem.given
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
