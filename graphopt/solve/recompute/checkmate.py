"""The optimum for small problems: Checkmate's integer program, the oracle of the tests.

Jain et al., "Checkmate: Breaking the Memory Wall with Optimal Tensor Rematerialization", MLSys 2020. Stage t ends with
the first run of operation t. With R[t, v]: v runs in stage t, S[t, b]: tensor b is kept from stage t - 1 to t, and
FREE[t, b, k]: b goes after the run of k in stage t,

    min  sum seconds_v R[t, v]
    s.t. R[t, t] = 1,  R[t, v] <= R[t, w] + S[t, b] for a tensor b that w writes and v reads,
         S[t + 1, b] <= S[t, b] + R[t, w],
         U[t, k + 1] = U[t, k] - sum of sizes of FREE[t, ., k] + sizes of what k + 1 writes,  U <= budget.

Every tensor must have one writer, and none is written in place. It has about n^2 variables of each kind.
"""

from __future__ import annotations

import math
from dataclasses import replace

from graphopt.errors import SolverError
from graphopt.solve.recompute.linear import Program
from graphopt.solve.recompute.liveness import Simulator
from graphopt.solve.recompute.problem import Problem, Solution, deadlines, writers


def solve(problem: Problem, seconds: float = 60.0, gap: float = 0.0) -> Solution | None:
    """The fastest sequence within the budget whose first runs are in the problem's order; None if there is none.

    Args:
        seconds: when to stop; the bound then says how far the solution may be from the optimum.

    Raises:
        SolverError: a tensor has several writers, or the time did not suffice for any solution.
    """
    makers = writers(problem)
    if any(len(found) + (tensor in problem.given) != 1 for tensor, found in enumerate(makers)):
        raise SolverError("a tensor has no writer, or several; this formulation wants one for each")
    maker = [found[0] if found else -1 for found in makers]
    model = _Model(problem, maker)
    answer = model.program.solve(seconds=seconds, gap=gap)
    if not answer.possible:
        return None
    if answer.values is None:
        raise SolverError(f"no solution was found in {seconds} s; give more time or a smaller problem")
    sequence = tuple(
        v for t in range(len(problem.operations)) for v in range(t + 1) if answer.values[model.runs[t][v]] > 0.5
    )
    simulator = Simulator(replace(problem))
    total = simulator.seconds(sequence)
    bound = min(total, answer.bound * model.unit)
    return Solution(sequence, simulator.run(sequence).peak, total, bound, "Checkmate")


class _Model:
    """The variables and rows of one problem."""

    def __init__(self, problem: Problem, maker: list[int]) -> None:
        self.program = program = Program()
        self.problem, self.maker = problem, maker
        self.unit = max(problem.seconds, 1e-30) / 1000
        count = len(problem.operations)
        limits = deadlines(problem)
        self.runs = [
            [
                program.variable(
                    operation.seconds / self.unit,
                    float(v == t),
                    float(v == t or (operation.recomputable and t <= limits[v])),
                    whole=True,
                )
                for v, operation in enumerate(problem.operations[: t + 1])
            ]
            for t in range(count)
        ]
        self.kept: list[dict[int, int]] = []
        for t in range(count + 1):
            held = {b: program.variable(whole=True) for b, made in enumerate(maker) if made < t}
            self.kept.append(held)
        for b in problem.wanted:
            program.row({self.kept[count][b]: 1.0}, low=1.0)
        for t in range(count):
            self._order(t)
            self._memory(t)

    def _order(self, t: int) -> None:
        """What runs in stage t finds what it reads, and what stage t + 1 is given exists."""
        for v, operation in enumerate(self.problem.operations[: t + 1]):
            for b in dict.fromkeys(operation.inputs):
                self.program.row(self._present(t, b, self.runs[t][v]), high=0.0)
        for b in self.kept[t + 1]:
            self.program.row(self._present(t, b, self.kept[t + 1][b]), high=0.0)

    def _present(self, t: int, b: int, wanting: int) -> dict[int, float]:
        terms = {wanting: 1.0}
        if b in self.kept[t]:
            terms[self.kept[t][b]] = -1.0
        if self.maker[b] >= 0:
            terms[self.runs[t][self.maker[b]]] = -1.0
        return terms

    def _memory(self, t: int) -> None:
        problem, program, runs = self.problem, self.program, self.runs[t]
        unit = max(problem.budget, 1) / 1000
        users = {
            b: [v for v in range(t + 1) if b in problem.operations[v].inputs or b in problem.operations[v].outputs]
            for b in self.kept[t + 1]
        }
        live = {self.kept[t][b]: problem.sizes[b] / unit for b in self.kept[t]}
        for k in range(t + 1):
            operation = problem.operations[k]
            used = program.variable(high=math.inf)
            terms = {**live, used: -1.0}
            made = sum(problem.sizes[b] for b in set(operation.outputs)) / unit
            terms[runs[k]] = terms.get(runs[k], 0.0) + made
            program.row(terms, 0.0, 0.0)
            program.row({used: 1.0, runs[k]: operation.scratch / unit}, high=problem.budget / unit)
            live = {used: 1.0}
            for b in dict.fromkeys((*operation.inputs, *operation.outputs)):
                if not problem.sizes[b]:
                    continue
                free = program.variable()
                program.row({free: 1.0, runs[k]: -1.0}, high=0.0)
                program.row({free: 1.0, self.kept[t + 1][b]: 1.0}, high=1.0)
                for j in users[b]:
                    if j > k:
                        program.row({free: 1.0, runs[j]: 1.0}, high=1.0)
                live[free] = -problem.sizes[b] / unit
