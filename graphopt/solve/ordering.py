"""An order of operations in which few bytes are live at once.

The least peak is NP-complete to find. Candidates are the given order, list schedules forwards and backwards that run
what frees memory as soon as it can run and put off what takes memory, and single operations moved out of the peak. The
given order is a candidate, so the result is never worse. All limits are counts of work.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from graphopt.solve.recompute.liveness import Simulator
from graphopt.solve.recompute.problem import Problem, dependences

EFFORT = 600_000
"""Operations simulated while single ones are moved; about two seconds."""


@dataclass(frozen=True, slots=True)
class Order:
    """`operations` in their order, and the bytes live at its peak; `given_peak` is that of the given order."""

    operations: tuple[int, ...]
    peak: int
    given_peak: int


def solve(problem: Problem, barriers: AbstractSet[int] = frozenset(), effort: int = EFFORT) -> Order:
    """The order of least peak among the candidates; of equal ones the given order.

    Args:
        barriers: operations that nothing passes: what stands before and after them stays there.
        effort: 0 leaves only the list schedules.
    """
    graph = _Graph(problem, barriers)
    simulator = Simulator(problem)
    count = len(problem.operations)
    given = tuple(range(count))
    candidates = [given]
    for eager in (True, False):
        forwards = graph.schedule(given, eager)
        backwards = graph.reversed_schedule(given, eager)
        candidates += [forwards, backwards, graph.schedule(backwards, eager), graph.reversed_schedule(forwards, eager)]
    peaks = [simulator.run(order).peak for order in candidates]
    best = min(range(len(candidates)), key=lambda index: (peaks[index], index))
    order, peak = candidates[best], peaks[best]
    if effort and count > 1:
        order, peak = _moved(graph, simulator, order, effort // count)
    return Order(order, peak, peaks[0]) if peak < peaks[0] else Order(given, peaks[0], peaks[0])


class _Graph:
    """Dependences, and which operations touch a tensor; a tensor is live from the first of them to the last."""

    def __init__(self, problem: Problem, barriers: AbstractSet[int]) -> None:
        count = len(problem.operations)
        self.count = count
        before: list[set[int]] = [set() for _ in range(count)]
        for first, second in (*dependences(problem), *_fences(count, barriers)):
            if first != second:
                before[second].add(first)
        self.before = [sorted(each) for each in before]
        self.after: list[list[int]] = [[] for _ in range(count)]
        for second, firsts in enumerate(self.before):
            for first in firsts:
                self.after[first].append(second)
        self.sizes = problem.sizes
        self.touched = [tuple(dict.fromkeys((*each.inputs, *each.outputs))) for each in problem.operations]
        self.users: list[list[int]] = [[] for _ in problem.sizes]
        for index, tensors in enumerate(self.touched):
            for tensor in tensors:
                self.users[tensor].append(index)
        self.given, self.wanted = problem.given, problem.wanted

    def schedule(self, order: Sequence[int], eager: bool) -> tuple[int, ...]:
        """A list schedule: with `eager` in the given order, but for what frees bytes; otherwise least bytes first."""
        return self._schedule(order, eager, self.before, self.after, self.given, self.wanted)

    def reversed_schedule(self, order: Sequence[int], eager: bool) -> tuple[int, ...]:
        """The same from the last operation to the first: what takes bytes runs as late as it can."""
        found = self._schedule(order[::-1], eager, self.after, self.before, self.wanted, self.given)
        return found[::-1]

    def _schedule(
        self,
        order: Sequence[int],
        eager: bool,
        before: Sequence[Sequence[int]],
        after: Sequence[Sequence[int]],
        present: AbstractSet[int],
        staying: AbstractSet[int],
    ) -> tuple[int, ...]:
        rank = {operation: place for place, operation in enumerate(order)}
        waiting = [len(each) for each in before]
        left = [len(users) + (tensor in staying) for tensor, users in enumerate(self.users)]
        live = [tensor in present for tensor in range(len(self.sizes))]
        done = [False] * self.count
        heap: list[tuple[int, int, int]] = []

        def change(operation: int) -> int:
            """Bytes that are live after the operation and were not before, less those that go."""
            total = 0
            for tensor in self.touched[operation]:
                total += 0 if live[tensor] else self.sizes[tensor]
                total -= self.sizes[tensor] if left[tensor] == 1 else 0
            return total

        def offer(operation: int) -> None:
            if not waiting[operation] and not done[operation]:
                bytes_more = change(operation)
                heapq.heappush(heap, (min(bytes_more, 0) if eager else bytes_more, rank[operation], operation))

        for operation in order:
            offer(operation)
        result = []
        while heap:
            key, _, operation = heapq.heappop(heap)
            now = change(operation) if not done[operation] else 0
            if done[operation] or key != (min(now, 0) if eager else now):
                continue  # offered again since
            done[operation] = True
            result.append(operation)
            for tensor in self.touched[operation]:
                left[tensor] -= 1
                first = not live[tensor]
                live[tensor] = True
                if first or left[tensor] == 1:
                    for user in self.users[tensor]:
                        offer(user)
            for following in after[operation]:
                waiting[following] -= 1
                offer(following)
        return tuple(result)


def _fences(count: int, barriers: AbstractSet[int]) -> Iterable[tuple[int, int]]:
    """Pairs that keep everything on its side of every barrier."""
    last = -1
    for index in range(count):
        if last >= 0:
            yield last, index
        if index in barriers:
            for earlier in range(max(last, 0), index):
                yield earlier, index
            last = index


def _moved(graph: _Graph, simulator: Simulator, order: tuple[int, ...], trials: int) -> tuple[tuple[int, ...], int]:
    """Move single operations across the peak while it falls: writers behind it, readers before it."""
    lifetimes = simulator.run(order)
    peak = lifetimes.peak
    improved = True
    while improved and trials > 0:
        improved = False
        step = int(lifetimes.live.argmax()) - 1
        if not 0 <= step < len(order):
            break
        through = (lifetimes.first <= step) & (lifetimes.last >= step + 2)
        largest = sorted(set(lifetimes.tensors[through].tolist()), key=lambda tensor: -graph.sizes[tensor])
        for trial in _trials(graph, order, step, largest):
            trials -= 1
            found = simulator.run(trial)
            if found.peak < peak:
                order, lifetimes, peak, improved = trial, found, found.peak, True
                break
            if trials <= 0:
                break
    return order, peak


def _trials(graph: _Graph, order: tuple[int, ...], step: int, tensors: Sequence[int]) -> Iterable[tuple[int, ...]]:
    """Orders with one operation moved over position `step`, as far as its dependences let it."""
    place = {operation: at for at, operation in enumerate(order)}
    seen: set[int] = set()
    for tensor in tensors:
        for user in graph.users[tensor]:
            if user in seen or user == order[step]:
                continue
            seen.add(user)
            at = place[user]
            if at < step and all(place[each] > step for each in graph.after[user]):
                yield (*order[:at], *order[at + 1 : step + 1], user, *order[step + 1 :])
            elif at > step and all(place[each] < step for each in graph.before[user]):
                yield (*order[:step], user, *order[step:at], *order[at + 1 :])
