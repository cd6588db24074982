"""Which nodes work on blocked tensors and which on planar ones, so that computing and converting cost the least.

    min  sum_v cost_v(layout of v)  +  sum over values: the conversion, once, if any consumer's layout is the other one

Two layouts and one shared conversion per value make this a minimum cut, so the answer is exact: its cost is its own
lower bound. (Boykov and Kolmogorov, PAMI 2004, doi:10.1109/TPAMI.2004.60; the shared conversion is an auxiliary node.)
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor: the node that makes it (None: it is planar from outside), those that read it, seconds to convert it."""

    producer: int | None
    consumers: tuple[int, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Problem:
    """Per node the seconds (blocked, planar); infinity where it cannot work on that layout."""

    costs: tuple[tuple[float, float], ...]
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Solution:
    """Per node whether it is blocked; the total seconds, which are also the lower bound."""

    blocked: tuple[bool, ...]
    seconds: float


def total(problem: Problem, blocked: tuple[bool, ...]) -> float:
    """Seconds of an assignment."""
    seconds = sum(
        costs[0] if is_blocked else costs[1] for costs, is_blocked in zip(problem.costs, blocked, strict=True)
    )
    for value in problem.values:
        here = value.producer is not None and blocked[value.producer]
        if any(blocked[consumer] != here for consumer in value.consumers):
            seconds += value.seconds
    return seconds


def validate(problem: Problem, solution: Solution) -> list[str]:
    """Reasons why `solution` is wrong, without looking at how it was found."""
    if len(solution.blocked) != len(problem.costs):
        return [f"{len(solution.blocked)} layouts for {len(problem.costs)} nodes"]
    seconds = total(problem, solution.blocked)
    if math.isinf(seconds):
        return ["a node works on a layout that it does not support"]
    if not math.isclose(seconds, solution.seconds, rel_tol=1e-6, abs_tol=1e-12):
        return [f"the assignment costs {seconds:.9g} s, the solution says {solution.seconds:.9g} s"]
    return []


def brute_force(problem: Problem) -> float:
    """The least seconds over all assignments; for tests on small problems."""
    return min(total(problem, flags) for flags in itertools.product((False, True), repeat=len(problem.costs)))


def solve(problem: Problem) -> Solution:
    """The cheapest assignment; among equals the one with the fewest blocked nodes."""
    import networkx as nx
    from networkx.algorithms.flow import boykov_kolmogorov

    graph = nx.DiGraph()
    graph.add_nodes_from([_BLOCKED, _PLANAR])
    for node, (blocked_cost, planar_cost) in enumerate(problem.costs):
        _arc(graph, _BLOCKED, node, planar_cost)  # cut, and paid, when the node ends on the planar side
        _arc(graph, node, _PLANAR, blocked_cost)
    for number, value in enumerate(problem.values):
        producer: object = _PLANAR if value.producer is None else value.producer
        to_planar, to_blocked = ("to planar", number), ("to blocked", number)
        _arc(graph, producer, to_planar, value.seconds)
        _arc(graph, to_blocked, producer, value.seconds)
        for consumer in value.consumers:
            _arc(graph, to_planar, consumer, math.inf)
            _arc(graph, consumer, to_blocked, math.inf)
    residual = boykov_kolmogorov(graph, _BLOCKED, _PLANAR)
    side = _reachable(residual, _BLOCKED)
    blocked = tuple(node in side for node in range(len(problem.costs)))
    return Solution(blocked, total(problem, blocked))


_BLOCKED, _PLANAR = "blocked", "planar"
_PICOSECOND = 1e-12


def _arc(graph: Any, tail: object, head: object, seconds: float) -> None:
    """Add an arc with a whole number of picoseconds, which flows add up exactly; without one it is infinite."""
    if math.isinf(seconds):
        graph.add_edge(tail, head)
    elif (capacity := round(seconds / _PICOSECOND)) > 0:
        graph.add_edge(tail, head, capacity=capacity)


def _reachable(residual: Any, start: object) -> set[object]:
    """Nodes that can still be reached from `start`: the blocked side of the smallest minimum cut."""
    seen = {start}
    pending = [start]
    while pending:
        for head, arc in residual[pending.pop()].items():
            if head not in seen and arc["flow"] < arc["capacity"]:
                seen.add(head)
                pending.append(head)
    return seen
