"""Improvement of a sequence by adding, removing and moving single repetitions, where decisions are too coarse.

A sequence is the problem's order with repetitions before some of its places. Whatever they are, it computes the right
values (see `problem`), so that every change is a possible one, and only its bytes and seconds count.
"""

from __future__ import annotations

import bisect
import math
import random
from collections.abc import Iterable, Sequence

from graphopt.solve.recompute.anneal import IDLE, cost
from graphopt.solve.recompute.plan import Evaluator, Plan

_SEED = 20232
_HOT, _COLD = 0.02, 0.0003
"""Temperatures at the beginning and the end, as shares of the seconds of the problem."""

Repetition = tuple[int, int]
"""(place, tensor): before the operation at that place the tensor is made again."""


def improve(evaluator: Evaluator, plan: Plan, budget: int, work: int, seed: int = 0) -> Plan:
    """The best plan found by changing the repetitions of `plan` until `work` runs have been simulated.

    Args:
        seed: another one takes another way.
    """
    search = _Search(evaluator)
    if not search.tensors:
        return plan
    chance = random.Random(_SEED + seed)
    # Seconds matter less while nothing fits.
    scale = max(evaluator.problem.seconds, 1e-30) * (1.0 if plan.peak <= budget else 10.0)
    repeated = search.of(plan.sequence)
    start = search.plan(repeated)
    best, current = (plan if plan.better(start, budget) else start), start
    begin, idle = evaluator.work, 0
    while evaluator.work < begin + work and idle < IDLE:
        done = (evaluator.work - begin) / max(work, 1)
        heat = _HOT * (_COLD / _HOT) ** done
        changed = search.changed(repeated, chance)
        trial = search.plan(changed)
        idle += 1
        change = (cost(trial, budget, scale, done) - cost(current, budget, scale, done)) / heat
        if change <= 0 or chance.random() < math.exp(-change):
            current, repeated = trial, changed
        if trial.better(best, budget):
            best, idle = trial, 0
    return best


class _Search:
    """The repetitions that are possible, and sequences of them."""

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator
        expander, sizes = evaluator.expander, evaluator.problem.sizes
        self._makers = expander.writers
        self._until = expander.until
        makers: dict[tuple[int, ...], int] = {}
        for tensor, found in enumerate(expander.writers):
            if expander.until[tensor] >= 0 and sizes[tensor]:
                makers.setdefault(tuple(found), tensor)  # one for each operation that makes several
        self.tensors = list(makers.values())
        self._of_makers = makers
        self._count = expander.count
        self._readers: list[list[int]] = [[] for _ in sizes]
        for place, reads in enumerate(expander.reads):
            for tensor in reads:
                self._readers[tensor].append(place)
        self._outputs = {
            tensor: {
                other for maker in expander.writers[tensor] for other in evaluator.problem.operations[maker].outputs
            }
            for tensor in self.tensors
        }

    def of(self, sequence: Sequence[int]) -> frozenset[Repetition]:
        """The repetitions in a sequence."""
        found: dict[int, set[int]] = {}
        place = 0
        for run in sequence:
            if run == place:
                place += 1
            else:
                found.setdefault(place, set()).add(run)
        return frozenset(
            (place, tensor)
            for place, runs in found.items()
            for makers, tensor in self._of_makers.items()
            if runs.issuperset(maker for maker in makers if maker < place) and makers[0] < place
        )

    def plan(self, repeated: Iterable[Repetition]) -> Plan:
        """The plan of these repetitions."""
        before: dict[int, set[int]] = {}
        for place, tensor in repeated:
            before.setdefault(place, set()).update(maker for maker in self._makers[tensor] if maker < place)
        sequence: list[int] = []
        for place in range(self._count + 1):
            sequence += sorted(before.get(place, ()))
            if place < self._count:
                sequence.append(place)
        self._evaluator.work += len(sequence)
        return self._evaluator.measured(b"", sequence)

    def changed(self, repeated: frozenset[Repetition], chance: random.Random) -> frozenset[Repetition]:
        """One or two changes: a repetition goes, comes, or moves; often with those that it reads from."""
        result = set(repeated)
        for _ in range(1 if chance.random() < 0.5 else 2):
            drawn = chance.random()
            depth = chance.choice((0, 0, 1, 2, 4, 8))
            if result and drawn < 0.6:
                place, tensor = chance.choice(sorted(result))
                result -= self._chain(place, tensor, depth, chance)
                if drawn < 0.25:
                    continue
            else:
                tensor = chance.choice(self.tensors)
            if places := self._places(tensor, result):
                result |= self._chain(chance.choice(places), tensor, depth, chance)
        return frozenset(result)

    def _chain(self, place: int, tensor: int, depth: int, chance: random.Random) -> set[Repetition]:
        """`tensor` at `place`, and tensors that its writers read, up to `depth` operations back."""
        found = {(place, tensor)}
        pending = [(tensor, depth)]
        while pending:
            current, left = pending.pop()
            for maker in self._makers[current] if left else ():
                for read in self._evaluator.expander.reads[maker]:
                    other = self._of_makers.get(tuple(self._makers[read]))
                    if other is None or (place, other) in found or chance.random() < 0.1:
                        continue
                    if self._makers[other][-1] < place <= self._until[other]:
                        found.add((place, other))
                        pending.append((other, left - 1))
        return found

    def _places(self, tensor: int, repeated: set[Repetition]) -> list[int]:
        """Where it may help to make `tensor` again: before what reads it, for the first time or again."""
        made = self._outputs[tensor]
        places = {place for output in made for place in self._readers[output]}
        places |= {
            place
            for place, other in repeated
            for maker in self._makers[other]
            if made & set(self._evaluator.problem.operations[maker].inputs)
        }
        low, high = self._makers[tensor][-1] + 1, self._until[tensor]
        ordered = sorted(places)
        return ordered[bisect.bisect_right(ordered, low) : bisect.bisect_right(ordered, high)]
