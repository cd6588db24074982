"""A set of decisions with what it costs, and the evaluation that all searches share."""

from __future__ import annotations

from dataclasses import dataclass

from graphopt.solve.recompute.expand import Expander
from graphopt.solve.recompute.liveness import Simulator
from graphopt.solve.recompute.problem import Problem, Solution


@dataclass(frozen=True, slots=True)
class Plan:
    """Decisions for the slots, the sequence that they give, its peak in bytes and its seconds."""

    decisions: bytes
    sequence: tuple[int, ...]
    peak: int
    seconds: float
    peak_place: int
    """Position in the problem's order that is reached next at the peak."""

    def excess(self, budget: int) -> int:
        """Bytes above the budget."""
        return max(0, self.peak - budget)

    def better(self, other: Plan | None, budget: int) -> bool:
        """Whether this one exceeds the budget by less, or else is faster, or else needs less."""
        if other is None:
            return True
        mine = (self.excess(budget), self.seconds, self.peak)
        return mine < (other.excess(budget), other.seconds, other.peak)


class Evaluator:
    """Evaluates decisions and remembers what it saw. `work` counts runs simulated, as the limit of every search."""

    def __init__(self, problem: Problem) -> None:
        """Prepares the slots and the simulation."""
        self.problem = problem
        self.expander = Expander(problem)
        self.simulator = Simulator(problem)
        self.work = 0
        self.least: Plan | None = None
        self._seen: dict[bytes, Plan | None] = {}

    def plan(self, decisions: bytes | bytearray) -> Plan | None:
        """The plan of `decisions`; None if its sequence is too long."""
        key = bytes(decisions)
        if key not in self._seen:
            sequence = self.expander.run(key)
            self.work += 4 * self.expander.count if sequence is None else len(sequence)
            found = None if sequence is None else self.measured(key, sequence)
            if len(self._seen) > 20_000:
                self._seen.clear()
            self._seen[key] = found
        return self._seen[key]

    def measured(self, key: bytes, sequence: list[int]) -> Plan:
        """The plan of a sequence; `key` are the decisions that it follows from, if any."""
        lifetimes = self.simulator.run(sequence)
        step = int(lifetimes.live.argmax())
        place, expected = 0, 0
        for run in sequence[: max(step - 1, 0)]:  # runs of the order rise; one that does not is a repetition
            if run == expected:
                expected += 1
        place = expected
        plan = Plan(key, tuple(sequence), lifetimes.peak, self.simulator.seconds(sequence), place)
        if self.least is None or plan.peak < self.least.peak:
            self.least = plan
        return plan

    def solution(self, plan: Plan, bound: float, method: str) -> Solution:
        """The plan as a solution; `bound` are seconds that no plan goes below."""
        return Solution(plan.sequence, plan.peak, plan.seconds, min(bound, plan.seconds), method)
