"""The fastest sequence within a budget of memory: fast plans, a lower bound, and searches that close the gap.

Tier 0 are plans of a few shapes (`greedy`), in about a second for 3000 operations. Tier 1 asks a linear program
(`boundaries`) how fast any sequence can be; if the best plan is not within `CLOSE` of that, its rounded solution and
annealing improve on it. All limits are counts of work, so that the same problem has the same solution everywhere; only
an integer program that takes unusually long is cut off by the clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from graphopt.errors import SolverError
from graphopt.solve.recompute import anneal, boundaries, descent, greedy, repetitions
from graphopt.solve.recompute.plan import Evaluator, Plan
from graphopt.solve.recompute.problem import Problem, Solution, check

CLOSE = 0.002
"""A gap that ends the search."""

EFFORT = 3_000_000
"""Runs simulated in the search by default: some ten seconds for 3000 operations."""

_VARIABLES = 60_000
"""Operations times boundaries of the linear program."""

_SMALL = 90
"""Operations up to which the integer program is tried."""

_WHOLE = 50_000
"""Effort from which the integer program is tried."""

_SECONDS = 6.0
"""Longest time of the integer program, which rarely needs more than one."""

_THRESHOLDS = (0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)


class InfeasibleError(SolverError):
    """No sequence found fits into the budget; `least` is the one that needs least, `possible` whether one may exist."""

    def __init__(self, message: str, least: Solution, possible: bool) -> None:
        """Args: message: one sentence."""
        super().__init__(message)
        self.least = least
        self.possible = possible


def solve(problem: Problem, effort: int = EFFORT, progress: Callable[[str], None] = lambda _: None) -> Solution:
    """The fastest sequence found whose peak is within the budget, with a lower bound on its seconds.

    Args:
        effort: 0 leaves only the fast plans, without a bound.
        progress: told what the search does.

    Raises:
        InfeasibleError: none was found that fits.
        SolverError: the problem has no meaning.
    """
    check(problem)
    evaluator = Evaluator(problem)
    budget = problem.budget
    progress("trying plans")
    plans = greedy.solve(evaluator, budget)
    best, method, bound = plans[0], "greedy", problem.seconds
    if effort and len(plans) > 1:
        progress("bounding")
        count = max(2, min(40, problem_size_limit(problem)))
        relaxed = boundaries.solve(evaluator, budget, boundaries.choose(evaluator, count))
        if not relaxed.possible:
            raise _infeasible(evaluator, False)
        bound = max(bound, relaxed.bound)
        if not _closed(best, budget, bound):
            progress("improving")
            starts = [best, *(_rounded(evaluator, relaxed))]
            if len(problem.operations) <= _SMALL and effort >= _WHOLE:
                whole = boundaries.solve(
                    evaluator, budget, tuple(range(len(problem.operations))), whole=True, seconds=_SECONDS
                )
                if not whole.possible:
                    raise _infeasible(evaluator, False)
                bound = max(bound, whole.bound)
                starts += _rounded(evaluator, whole)
            best, method = _improved(evaluator, starts, budget, bound, effort)
    if best.peak > budget:
        raise _infeasible(evaluator, True)
    return evaluator.solution(best, bound, method)


def least(problem: Problem, effort: int = EFFORT // 4) -> Solution:
    """The sequence that needs least memory, as far as the searches find it, whatever its seconds."""
    check(problem)
    evaluator = Evaluator(replace(problem, budget=1))
    plans = greedy.solve(evaluator, floor(problem), tries=0)
    if effort:
        anneal.improve(evaluator, min(plans, key=lambda plan: plan.peak), floor(problem), effort)
    assert evaluator.least is not None
    return evaluator.solution(evaluator.least, problem.seconds, "least memory")


def floor(problem: Problem) -> int:
    """Bytes that no sequence goes below: what one operation reads, writes and needs as scratch."""
    highest = 1
    for operation in problem.operations:
        saved = {new for _, new in operation.in_place}
        touched = {*operation.inputs, *operation.outputs} - saved
        highest = max(highest, operation.scratch + sum(problem.sizes[tensor] for tensor in touched))
    return highest


def problem_size_limit(problem: Problem) -> int:
    """Boundaries that the linear program of this problem may have."""
    return _VARIABLES // max(len(problem.operations), 1)


def _closed(plan: Plan, budget: int, bound: float) -> bool:
    return plan.peak <= budget and plan.seconds <= bound * (1 + CLOSE)


def _rounded(evaluator: Evaluator, relaxed: boundaries.Relaxed) -> list[Plan]:
    plans = [boundaries.rounded(evaluator, relaxed, threshold) for threshold in _THRESHOLDS]
    return [plan for plan in dict.fromkeys(plans) if plan is not None]


def _improved(evaluator: Evaluator, starts: list[Plan], budget: int, bound: float, effort: int) -> tuple[Plan, str]:
    """Each search goes on from the best plan so far: exchanges, annealing from several plans, single repetitions."""
    best = starts[0]
    method = "greedy"
    scale = max(evaluator.problem.seconds, 1e-30)
    ranked = sorted(starts[1:], key=lambda plan: anneal.cost(plan, budget, scale, 0.5))
    searches: list[tuple[str, Callable[[], Plan]]] = [
        ("exchange", lambda: descent.improve(evaluator, best, budget, effort)),
        ("annealing", lambda: anneal.improve(evaluator, best, budget, effort // 3)),
        *(
            ("annealing", lambda start=start: anneal.improve(evaluator, start, budget, effort // 3))
            for start in ranked[:2]
        ),
        *(
            (
                "repetitions",
                lambda seed=seed: repetitions.improve(evaluator, starts[0] if seed % 2 else best, budget, effort, seed),
            )
            for seed in range(4 if len(evaluator.problem.operations) <= _SMALL else 1)
        ),
    ]
    for name, search in searches:
        found = search()
        if found.better(best, budget):
            best, method = found, name
        if _closed(best, budget, bound):
            break
    return best, method


def _infeasible(evaluator: Evaluator, possible: bool) -> InfeasibleError:
    problem = evaluator.problem
    smallest = evaluator.least
    assert smallest is not None
    solution = evaluator.solution(smallest, problem.seconds, "least memory")
    return InfeasibleError(
        f"no sequence within {problem.budget} bytes was found; the least that one needs is {smallest.peak} bytes, "
        f"at {smallest.seconds / problem.seconds if problem.seconds else math.inf:.2f} times the seconds",
        solution,
        possible,
    )
