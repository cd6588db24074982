"""Joint selection of algorithm and layout of every node: compute costs plus layout conversions, which are shared.

    min  sum_v seconds_v[a_v]  +  sum over tensors u and layouts l: seconds to convert u to l, if a consumer reads l
    s.t. sum_v error_v[a_v] <= budget

An alternative a of a node reads all its tensors in one layout and writes its output in one. A tensor is converted at
most once to each layout, however many consumers read it: so each tensor gets a node of its own whose value is the set
of layouts that it exists in, and the problem becomes one of pairs (`graphopt.solve.pbqp`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from graphopt.errors import SolverError
from graphopt.solve import pbqp


@dataclass(frozen=True, slots=True)
class Alternative:
    """One way to compute a node: the layouts that it reads and writes, seconds, relative rounding error."""

    reads: int
    writes: int
    seconds: float
    error: float = 0.0


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor: its producer, its consumers, and `seconds[from][to]` to convert it between layouts."""

    producer: int
    consumers: tuple[int, ...]
    seconds: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """The alternatives of each node. Graph inputs and outputs are nodes with a single alternative."""

    alternatives: tuple[tuple[Alternative, ...], ...]
    tensors: tuple[Tensor, ...]
    layouts: int = 2
    error_budget: float = math.inf


@dataclass(frozen=True, slots=True)
class Solution:
    """The index of each node's alternative; total seconds, and a lower bound on them.

    `core` counts the nodes that the exact reductions left to the integer program.
    """

    chosen: tuple[int, ...]
    seconds: float
    bound: float
    core: int = 0

    @property
    def gap(self) -> float:
        """(seconds - bound) / seconds: 0 when the choice is proven optimal."""
        return (self.seconds - self.bound) / self.seconds if self.seconds > 0 else 0.0


def total(problem: Problem, chosen: tuple[int, ...]) -> float:
    """Total seconds of a choice."""
    taken = [options[index] for options, index in zip(problem.alternatives, chosen, strict=True)]
    seconds = sum(alternative.seconds for alternative in taken)
    for tensor in problem.tensors:
        here = taken[tensor.producer].writes
        wanted = {taken[consumer].reads for consumer in tensor.consumers} - {here}
        seconds += sum(tensor.seconds[here][layout] for layout in wanted)
    return seconds


def error_of(problem: Problem, chosen: tuple[int, ...]) -> float:
    """Sum of the relative errors of a choice."""
    return sum(options[index].error for options, index in zip(problem.alternatives, chosen, strict=True))


def validate(problem: Problem, solution: Solution) -> list[str]:
    """Reasons why `solution` is wrong, independent of the solver."""
    if len(solution.chosen) != len(problem.alternatives):
        return [f"{len(solution.chosen)} choices for {len(problem.alternatives)} nodes"]
    reasons = [
        f"node {node} has no alternative {index}"
        for node, (options, index) in enumerate(zip(problem.alternatives, solution.chosen, strict=True))
        if not 0 <= index < len(options)
    ]
    if reasons:
        return reasons
    seconds, error = total(problem, solution.chosen), error_of(problem, solution.chosen)
    if not math.isclose(seconds, solution.seconds, rel_tol=1e-9, abs_tol=1e-12):
        reasons.append(f"the choice costs {seconds:.9g} s, the solution says {solution.seconds:.9g} s")
    if solution.bound > seconds * (1 + 1e-9):
        reasons.append(f"the bound {solution.bound:.9g} s is above the cost {seconds:.9g} s")
    if error > problem.error_budget * (1 + 1e-9):
        reasons.append(f"the errors add up to {error:.3g}, above the budget of {problem.error_budget:.3g}")
    return reasons


def solve(problem: Problem) -> Solution:
    """The cheapest choice within the error budget, proven optimal.

    Raises:
        SolverError: no choice is possible, or none within the budget.
    """
    graph = _pairs(problem)
    assignment = pbqp.solve(graph)
    if assignment is None:
        raise SolverError("no choice of algorithms is possible: a node has no alternative of finite cost")
    chosen = assignment.values[: len(problem.alternatives)]
    if error_of(problem, chosen) > problem.error_budget:
        errors = {
            node: np.array([option.error for option in options]) for node, options in enumerate(problem.alternatives)
        }
        assignment = pbqp.solve(graph, errors, problem.error_budget)
        if assignment is None:
            least = sum(min(option.error for option in options) for options in problem.alternatives)
            raise SolverError(
                f"no choice of algorithms keeps the error budget {problem.error_budget:.1e}: the least is {least:.1e}"
            )
        chosen = assignment.values[: len(problem.alternatives)]
    return Solution(chosen, total(problem, chosen), min(assignment.bound, total(problem, chosen)), assignment.core)


def greedy(problem: Problem, deciding: Sequence[int]) -> Solution:
    """Each node of `deciding` takes the alternative that is cheapest by itself; the others are solved optimally."""
    kept = {
        node: [min(range(len(options)), key=lambda index: options[index].seconds)]
        for node in deciding
        for options in [problem.alternatives[node]]
    }
    return _restricted(problem, kept)


def single_layout(problem: Problem, deciding: Sequence[int]) -> Solution:
    """The best choice in which every node of `deciding` writes one and the same layout wherever it can."""
    solutions = []
    for layout in range(problem.layouts):
        kept = {}
        for node in deciding:
            options = problem.alternatives[node]
            indices = [index for index, option in enumerate(options) if option.writes == layout]
            kept[node] = indices or list(range(len(options)))
        solutions.append(_restricted(problem, kept))
    return min(solutions, key=lambda solution: solution.seconds)


def _restricted(problem: Problem, kept: Mapping[int, Sequence[int]]) -> Solution:
    """The best choice when the nodes of `kept` have only those alternatives; ignores the error budget."""
    alternatives = list(problem.alternatives)
    for node, indices in kept.items():
        alternatives[node] = tuple(problem.alternatives[node][index] for index in indices)
    assignment = pbqp.solve(_pairs(replace(problem, alternatives=tuple(alternatives))))
    if assignment is None:
        raise SolverError("no choice of algorithms is possible: a node has no alternative of finite cost")
    chosen = list(assignment.values[: len(alternatives)])
    for node, indices in kept.items():
        chosen[node] = indices[chosen[node]]
    return Solution(tuple(chosen), total(problem, tuple(chosen)), assignment.bound, assignment.core)


def _pairs(problem: Problem) -> pbqp.Graph:
    """The problem of pairs: first the nodes, in order, then one node per tensor that has a consumer."""
    graph = pbqp.Graph()
    for options in problem.alternatives:
        graph.add_node(np.array([option.seconds for option in options]))
    layouts = range(problem.layouts)
    sets = [subset for size in range(1, problem.layouts + 1) for subset in itertools.combinations(layouts, size)]
    for tensor in problem.tensors:
        if not tensor.consumers:
            continue
        exists = graph.add_node(np.zeros(len(sets)))
        writes = [option.writes for option in problem.alternatives[tensor.producer]]
        conversions = [[_conversion_seconds(tensor, here, subset) for subset in sets] for here in writes]
        graph.add_edge(tensor.producer, exists, np.array(conversions))
        for consumer in tensor.consumers:
            reads = [option.reads for option in problem.alternatives[consumer]]
            allowed = [[0.0 if layout in subset else math.inf for subset in sets] for layout in reads]
            graph.add_edge(consumer, exists, np.array(allowed))
    return graph


def _conversion_seconds(tensor: Tensor, here: int, subset: tuple[int, ...]) -> float:
    """Seconds to convert the tensor to all layouts of `subset` when it was written in layout `here`."""
    if here not in subset:
        return math.inf
    return sum(tensor.seconds[here][layout] for layout in subset if layout != here)
