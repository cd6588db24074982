"""From decisions to a sequence: each tensor is kept between two uses, or made again before the second.

A slot is the time between one use of a tensor and the next; the last slot of a tensor follows its last use. In a slot
a tensor is kept, or it is absent until something needs it. What needs it may be its own next use, or an operation that
runs again to make another tensor: then it is held for its own next use if that comes within the reach of the decision,
a number of positions, and is absent again otherwise. So a segment may be made again in pieces, each for its own part of
what follows.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.solve.recompute.problem import Problem, deadlines, writers

KEEP, REDO = 0, 1
"""Decisions: the tensor is kept; it is absent, and never held. Those above hold it."""

REACHES = (-1, 0, *(1 << power for power in range(15)), 1 << 60)
"""Positions that a tensor is held for, by decision."""

HOLD = len(REACHES) - 1
"""The decision that holds a tensor in any case."""


def hold(reach: int) -> int:
    """The decision that holds a tensor for `reach` positions at least."""
    return next(decision for decision, positions in enumerate(REACHES) if decision > REDO and positions >= reach)


LONGEST = 24
"""A sequence of more runs than this for each operation is given up."""


class Expander:
    """The slots of a problem, and the sequence that follows from a decision for each."""

    def __init__(self, problem: Problem) -> None:
        """Numbers the slots: those of tensor t are `starts[t]` to `starts[t + 1]`, in order of time."""
        self.problem = problem
        operations = problem.operations
        self.count = count = len(operations)
        self.reads = [tuple(dict.fromkeys(operation.inputs)) for operation in operations]
        self.reads.append(tuple(sorted(problem.wanted)))
        self.uses = [tuple(dict.fromkeys((*operation.inputs, *operation.outputs))) for operation in operations]
        self.writers = writers(problem)
        self.until = self._deadlines()
        positions: list[list[int]] = [[] for _ in problem.sizes]
        for tensor in sorted(problem.given):
            positions[tensor].append(-1)
        for place, used in enumerate(self.uses):
            for tensor in used:
                positions[tensor].append(place)
        for tensor in sorted(problem.wanted):
            positions[tensor].append(count)
        self.starts: list[int] = []
        self.tensor: list[int] = []
        self.begin: list[int] = []
        self.end: list[int] = []  # the position of the next use; `count + 1` in the slot after the last
        for tensor, places in enumerate(positions):
            self.starts.append(len(self.tensor))
            for place, following in zip(places, [*places[1:], count + 1], strict=True):
                self.tensor.append(tensor)
                self.begin.append(place)
                self.end.append(following)

    def _deadlines(self) -> list[int]:
        """For each tensor the last position before which it can be made again; -1 if it cannot."""
        problem = self.problem
        limits = deadlines(problem)
        written = [dict.fromkeys(operation.outputs) for operation in problem.operations]
        shared = {
            index
            for index, outputs in enumerate(written)
            if len(outputs) > 1 and any(len(self.writers[tensor]) > 1 for tensor in outputs)
        }
        found = []
        for tensor, makers in enumerate(self.writers):
            possible = (
                makers
                and tensor not in problem.given
                and all(problem.operations[maker].recomputable and maker not in shared for maker in makers)
            )
            found.append(min(limits[maker] for maker in makers) if possible else -1)
        return found

    def droppable(self, slot: int) -> bool:
        """Whether the tensor may be absent in `slot` and come back at its end; not where a part of it is written."""
        tensor, end = self.tensor[slot], self.end[slot]
        if end > self.until[tensor] or end - self.begin[slot] < 2:
            return False
        return end == self.count or tensor not in self.problem.operations[end].outputs

    def nothing(self) -> bytearray:
        """The decisions without recomputation: kept until the last use, absent afterwards."""
        return bytearray(KEEP if end <= self.count else REDO for end in self.end)

    def run(self, decisions: Sequence[int]) -> list[int] | None:
        """The sequence of `decisions`, one for each slot; None if it is too long.

        What cannot be made again at some place is kept until there.
        """
        sequence: list[int] = []
        slot = [start - (tensor not in self.problem.given) for tensor, start in enumerate(self.starts)]
        held = bytearray(len(slot))
        limit = LONGEST * (self.count + 8)
        for place, reads in enumerate(self.reads):
            missing = [
                tensor
                for tensor in reads
                if decisions[slot[tensor]] and not held[tensor] and place <= self.until[tensor]
            ]
            if missing:
                sequence += self._again(place, missing, decisions, slot, held)
                if len(sequence) > limit:
                    return None
            if place < self.count:
                sequence.append(place)
                for tensor in self.uses[place]:
                    slot[tensor] += 1
                    held[tensor] = 0
        return sequence

    def _again(
        self, place: int, missing: list[int], decisions: Sequence[int], slot: list[int], held: bytearray
    ) -> list[int]:
        """The operations that make `missing` before position `place`, in order; marks what is held from there."""
        made: set[int] = set()
        runs: set[int] = set()
        while missing:
            tensor = missing.pop()
            if tensor in made:
                continue
            made.add(tensor)
            for maker in self.writers[tensor]:
                if maker >= place or maker in runs:
                    continue
                runs.add(maker)
                made.update(self.problem.operations[maker].outputs)
                missing += [
                    other
                    for other in self.reads[maker]
                    if other not in made and decisions[slot[other]] and not held[other] and place <= self.until[other]
                ]
        for tensor in made:
            decision = decisions[slot[tensor]]
            if decision and (decision == HOLD or self.end[slot[tensor]] - place <= REACHES[decision]):
                held[tensor] = 1
        return sorted(runs)
