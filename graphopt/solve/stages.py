"""Partition of a network into pipeline stages: contiguous pieces of its execution order, balanced by cost.

Minimises the cost of the most expensive stage (it sets the throughput of a pipeline) and, among such cuts, the bytes
that cross boundaries. A tensor is charged at every boundary between its producer and its last consumer, because it is
forwarded through the stages between (`graphopt.program.schedule`); weights do not cross.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from graphopt.errors import SolverError


@dataclass(frozen=True, slots=True)
class Crossing:
    """A tensor of `size` bytes with the blocks that produce it and consume it last; blocks are numbered from 0.

    A graph input is given to every rank and never crosses: leave it out.
    """

    size: int
    producer: int
    last_consumer: int


@dataclass(frozen=True, slots=True)
class StageProblem:
    """Blocks in order of execution with their costs (any unit), the tensors between them, and the number of stages."""

    costs: tuple[float, ...]
    tensors: tuple[Crossing, ...]
    stages: int


@dataclass(frozen=True, slots=True)
class StageSolution:
    """`cuts[k]` is the first block of stage k + 1, rising. `bottleneck` is the largest stage cost.

    No cut into this number of stages has a bottleneck below `lower_bound`: the mean, or the largest block.
    """

    cuts: tuple[int, ...]
    bottleneck: float
    crossing_bytes: int
    lower_bound: float

    def ranges(self, blocks: int) -> tuple[range, ...]:
        """The blocks of each stage."""
        return tuple(range(first, last) for first, last in itertools.pairwise((0, *self.cuts, blocks)))


def boundary_bytes(problem: StageProblem) -> tuple[int, ...]:
    """Bytes alive across each possible cut: entry i is for a cut before block i (entry 0 is 0)."""
    change = [0] * (len(problem.costs) + 1)
    for tensor in problem.tensors:
        if tensor.last_consumer > tensor.producer:
            change[tensor.producer + 1] += tensor.size
            change[tensor.last_consumer + 1] -= tensor.size
    return tuple(itertools.accumulate(change[:-1]))


def lower_bound(problem: StageProblem) -> float:
    """The larger of the largest block and the mean stage cost."""
    return max(max(problem.costs, default=0.0), math.fsum(problem.costs) / problem.stages)


def solve(problem: StageProblem) -> StageSolution:
    """The best cuts, by dynamic programming over (stages, blocks); every stage gets at least one block.

    Minimises the bottleneck first, then the crossing bytes, then takes the earliest cuts. Time is stages x blocks^2: 64
    stages of 1000 blocks take seconds.

    Raises:
        SolverError: there are fewer blocks than stages, or a number of the problem is out of range.
    """
    _check(problem)
    blocks, stages = len(problem.costs), problem.stages
    crossing = boundary_bytes(problem)
    before, scale = _prefix_sums(problem.costs)
    limit = _least_bottleneck(before, stages)
    # least[b]: fewest bytes for cutting the first b blocks into the stages so far, none above the limit.
    least: list[float] = [0 if first == 0 else math.inf for first in range(blocks + 1)]
    came_from: list[list[int]] = []
    for _ in range(stages):
        following = [math.inf] * (blocks + 1)
        origin = [-1] * (blocks + 1)
        for end in range(1, blocks + 1):
            for start in range(end - 1, -1, -1):
                if before[end] - before[start] > limit:
                    break
                total = least[start] + crossing[start]
                if total <= following[end] and total < math.inf:
                    following[end], origin[end] = total, start
        came_from.append(origin)
        least = following
    cuts: list[int] = []
    position = blocks
    for origin in reversed(came_from):
        position = origin[position]
        cuts.append(position)
    chosen = tuple(reversed(cuts[:-1]))
    return StageSolution(
        chosen, float(Fraction(limit, scale)), sum(crossing[cut] for cut in chosen), lower_bound(problem)
    )


def validate(problem: StageProblem, solution: StageSolution) -> list[str]:
    """Every reason why `solution` does not solve `problem`, as a sentence; empty if it does."""
    blocks = len(problem.costs)
    if len(solution.cuts) != problem.stages - 1:
        return [f"there are {len(solution.cuts) + 1} stages, and {problem.stages} are wanted"]
    edges = (0, *solution.cuts, blocks)
    if any(first >= last for first, last in itertools.pairwise(edges)):
        return [f"the cuts {solution.cuts} leave a stage without a block"]
    reasons = []
    costs = [math.fsum(problem.costs[first:last]) for first, last in itertools.pairwise(edges)]
    if solution.bottleneck != max(costs):
        reasons.append(f"the largest stage costs {max(costs)}, not {solution.bottleneck}")
    stage_of = [stage for stage, (first, last) in enumerate(itertools.pairwise(edges)) for _ in range(first, last)]
    crossing = sum(
        tensor.size * max(0, stage_of[tensor.last_consumer] - stage_of[tensor.producer]) for tensor in problem.tensors
    )
    if solution.crossing_bytes != crossing:
        reasons.append(f"{crossing} bytes cross, not {solution.crossing_bytes}")
    if solution.lower_bound > solution.bottleneck * (1 + 1e-12):
        reasons.append(f"the lower bound {solution.lower_bound} is above the bottleneck {solution.bottleneck}")
    return reasons


def _check(problem: StageProblem) -> None:
    blocks = len(problem.costs)
    if problem.stages < 1:
        raise SolverError(f"{problem.stages} stages are not possible: ask for at least 1")
    if problem.stages > blocks:
        raise SolverError(
            f"{problem.stages} stages need at least as many blocks, and there are {blocks}: ask for fewer"
        )
    for index, cost in enumerate(problem.costs):
        if not 0 <= cost < math.inf:
            raise SolverError(f"block {index} has the cost {cost}: it must be a number from 0 on")
    for tensor in problem.tensors:
        if tensor.size < 0 or not 0 <= tensor.producer <= tensor.last_consumer < blocks:
            raise SolverError(f"{tensor} is not possible between {blocks} blocks")


def _prefix_sums(costs: Sequence[float]) -> tuple[list[int], int]:
    """Exact sums of the first 0, 1, ... costs, as whole multiples of 1 / scale: rounding would blur equal costs."""
    exact = [Fraction(cost) for cost in costs]
    scale = math.lcm(*(cost.denominator for cost in exact))
    return list(itertools.accumulate((int(cost * scale) for cost in exact), initial=0)), scale


def _least_bottleneck(before: Sequence[int], stages: int) -> int:
    """The least limit under which filling one stage after the other needs at most `stages` of them.

    With at least as many blocks as stages, a cut into fewer stages can be cut further without costing more.
    """
    low, high = max(last - first for first, last in itertools.pairwise(before)), before[-1]
    while low < high:
        limit = (low + high) // 2
        used, start = 1, 0
        for end in range(1, len(before)):
            if before[end] - before[start] > limit:
                used, start = used + 1, end - 1
        low, high = (low, limit) if used <= stages else (limit + 1, high)
    return low
