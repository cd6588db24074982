"""What is live when a sequence runs: the versions of tensors, and the bytes at every step, exactly.

Step 0 takes the inputs, step i + 1 is run i of the sequence, and the last step gives the outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.solve.recompute.problem import Problem, writers

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Lifetimes:
    """The versions of tensors, in order of tensor and then of time, and the bytes that are live at every step.

    `tensors[v]` is the tensor of version v, live from step `first[v]` to `last[v]`, both included. `merged` are pairs
    of versions (input, output) that are the same bytes, the step in which one becomes the other being `first[output]`.
    """

    tensors: Integers
    first: Integers
    last: Integers
    live: Integers
    merged: Integers

    @property
    def peak(self) -> int:
        """The largest sum of live bytes."""
        return int(self.live.max())


class Simulator:
    """Simulates sequences of one problem; what does not depend on the sequence is computed once."""

    def __init__(self, problem: Problem) -> None:
        """Lists the accesses of every operation: its inputs, then its outputs."""
        self.problem = problem
        self._sizes = np.array(problem.sizes, dtype=np.int64)
        self._seconds = np.array([operation.seconds for operation in problem.operations])
        self._scratch = np.array([operation.scratch for operation in problem.operations], dtype=np.int64)
        first_writer = {tensor: found[0] for tensor, found in enumerate(writers(problem)) if found}
        tensors: list[int] = []
        opens: list[bool] = []
        starts = [0]
        pairs: list[tuple[int, int, int]] = []
        for index, operation in enumerate(problem.operations):
            reads = list(dict.fromkeys(operation.inputs))
            outputs = list(dict.fromkeys(operation.outputs))
            tensors += [*reads, *outputs]
            opens += [False] * len(reads)
            opens += [first_writer[tensor] == index and tensor not in problem.given for tensor in outputs]
            for source, target in operation.in_place:
                if self._may_merge(source, target, operation.inputs, operation.outputs):
                    pairs.append((index, reads.index(source), len(reads) + outputs.index(target)))
            starts.append(len(tensors))
        self._starts = np.array(starts, dtype=np.int64)
        self._tensors = np.array(tensors, dtype=np.int64)
        self._opens = np.array(opens, dtype=np.bool_)
        self._pairs = np.array(pairs, dtype=np.int64).reshape(-1, 3)
        self._pair_starts = np.searchsorted(self._pairs[:, 0], np.arange(len(problem.operations) + 1))
        self._given = np.array(sorted(problem.given), dtype=np.int64)
        self._wanted = np.array(sorted(problem.wanted), dtype=np.int64)

    def _may_merge(self, source: int, target: int, inputs: Sequence[int], outputs: Sequence[int]) -> bool:
        problem = self.problem
        return (
            problem.sizes[source] == problem.sizes[target] > 0
            and source in inputs
            and target in outputs
            and source != target
            and source not in problem.given
        )

    def seconds(self, sequence: Sequence[int]) -> float:
        """Seconds of all runs."""
        return float(self._seconds[np.asarray(sequence, dtype=np.int64)].sum())

    def run(self, sequence: Sequence[int]) -> Lifetimes:
        """The lifetimes of a sequence whose readers follow their writers."""
        order = np.asarray(sequence, dtype=np.int64)
        steps = len(order) + 2
        flat, step = _expanded(self._starts, order)
        tensors = np.concatenate([self._given, self._tensors[flat], self._wanted])
        opens = np.concatenate(
            [np.ones(len(self._given), np.bool_), self._opens[flat], np.zeros(len(self._wanted), np.bool_)]
        )
        at = np.concatenate(
            [np.zeros(len(self._given), np.int64), step + 1, np.full(len(self._wanted), steps - 1, np.int64)]
        )
        sort = np.argsort((tensors * steps + at) * 2 + ~opens, kind="stable")
        version = np.cumsum(opens[sort]) - 1
        at = at[sort]
        starts = np.flatnonzero(opens[sort])
        ends = np.append(starts[1:], len(sort)) - 1
        if not len(starts):
            empty = np.zeros(0, np.int64)
            live = self._with_scratch(order, np.zeros(steps, np.int64))
            return Lifetimes(empty, empty, empty, live, empty.reshape(0, 2))
        first, last, owner = at[starts], at[ends], tensors[sort][starts]
        sizes = self._sizes[owner]
        change = np.zeros(steps + 1, np.int64)
        np.add.at(change, first, sizes)
        np.add.at(change, last + 1, -sizes)
        live = self._with_scratch(order, np.cumsum(change[:-1]))
        merged = self._merged(order, sort, version, first, last)
        np.subtract.at(live, first[merged[:, 1]], self._sizes[owner[merged[:, 1]]])
        return Lifetimes(owner, first, last, live, merged)

    def _with_scratch(self, order: Integers, live: Integers) -> Integers:
        live[1:-1] += self._scratch[order]
        return live

    def _merged(self, order: Integers, sort: Integers, version: Integers, first: Integers, last: Integers) -> Integers:
        """Pairs of versions that are the same bytes: the input is read for the last time, each is in one pair."""
        if not len(self._pairs):
            return np.zeros((0, 2), np.int64)
        place = np.empty(len(sort), np.int64)
        place[sort] = np.arange(len(sort))
        chosen, step = _expanded(self._pair_starts, order)
        lengths = self._starts[order + 1] - self._starts[order]
        begins = np.cumsum(lengths) - lengths + len(self._given)
        source = version[place[begins[step] + self._pairs[chosen, 1]]]
        target = version[place[begins[step] + self._pairs[chosen, 2]]]
        fits = np.flatnonzero((last[source] == step + 1) & (first[target] == step + 1))
        kept: dict[int, int] = {}
        taken: set[int] = set()
        for new, old in zip(target[fits].tolist(), source[fits].tolist(), strict=True):
            if new not in kept and old not in taken:
                kept[new] = old
                taken.add(old)
        return np.array([(old, new) for new, old in kept.items()], np.int64).reshape(-1, 2)


def _expanded(starts: Integers, order: Integers) -> tuple[Any, Any]:
    """Indices `starts[i]` to `starts[i + 1]` for every i of `order`, one after the other, and the place of that i."""
    lengths = starts[order + 1] - starts[order]
    begins = np.cumsum(lengths) - lengths
    place = np.repeat(np.arange(len(order)), lengths)
    return np.arange(int(lengths.sum())) - begins[place] + starts[order][place], place
