"""Operations that may run again to save memory: the problem, and a solution as one sequence.

A solution is a sequence of operations in which some stand several times. What every run reads and writes follows from
the sequence alone: a run of the first writer of a tensor begins a new version of it, a reader reads the newest version,
and a version lives from its first write to its last read. So every sequence that keeps the order of dependences and
begins with them has a meaning, and repeating an operation anywhere later never makes it wrong: it only costs seconds.

    a = f(x); b = g(a); ...; c = h(a)        ->      a = f(x); b = g(a); ...; a' = f(x); c = h(a')
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from graphopt.errors import SolverError


@dataclass(frozen=True, slots=True)
class Operation:
    """One call. `inputs`, `outputs` and the pairs of `in_place` (input, output) are indices of tensors.

    `scratch` bytes are live during the call only. An output of `in_place` may be the same bytes as its input, if no one
    reads that input later.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    seconds: float = 0.0
    scratch: int = 0
    recomputable: bool = True
    in_place: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Problem:
    """Operations in an order that is possible.

    `sizes` are the bytes of the tensors, 0 for what lies outside of the arena. Tensors of `given` exist from the
    beginning, and nothing may be written over them; those of `wanted` are read at the end. A tensor may have several
    writers, each of a part: a reader needs all that stand before it. `before` are pairs of operations: every run of the
    first comes before every run of the second, as a reader of a parameter comes before its update.
    """

    operations: tuple[Operation, ...]
    sizes: tuple[int, ...]
    given: frozenset[int] = frozenset()
    wanted: frozenset[int] = frozenset()
    before: tuple[tuple[int, int], ...] = ()
    budget: int = 1 << 62

    @property
    def seconds(self) -> float:
        """Seconds of every operation once."""
        return math.fsum(operation.seconds for operation in self.operations)


@dataclass(frozen=True, slots=True)
class Solution:
    """`sequence` are indices of operations; `peak` bytes are live at once, and the runs take `seconds`.

    No sequence that fits into the budget and whose first runs are in this order takes less than `bound` seconds.
    """

    sequence: tuple[int, ...]
    peak: int
    seconds: float
    bound: float
    method: str = ""

    @property
    def gap(self) -> float:
        """(seconds - bound) / seconds: 0 when no faster sequence exists."""
        return max(0.0, (self.seconds - self.bound) / self.seconds) if self.seconds > 0 else 0.0


def writers(problem: Problem) -> list[list[int]]:
    """For each tensor the operations that write it, in order."""
    found: list[list[int]] = [[] for _ in problem.sizes]
    for index, operation in enumerate(problem.operations):
        for tensor in dict.fromkeys(operation.outputs):
            found[tensor].append(index)
    return found


def dependences(problem: Problem) -> Iterator[tuple[int, int]]:
    """Pairs of operations whose order is fixed: writer and reader, the writers of a tensor, and `before`."""
    last: dict[int, int] = {}
    for index, operation in enumerate(problem.operations):
        for tensor in dict.fromkeys((*operation.inputs, *operation.outputs)):
            if tensor in last:
                yield last[tensor], index
        for tensor in operation.outputs:
            last[tensor] = index
    yield from problem.before


def deadlines(problem: Problem) -> list[int]:
    """For each operation the last position of the order before which it may still run; the end for most."""
    found = [len(problem.operations)] * len(problem.operations)
    for first, second in problem.before:
        found[first] = min(found[first], second)
    return found


def reordered(problem: Problem, order: tuple[int, ...]) -> Problem:
    """The same problem with its operations in `order`."""
    position = {operation: place for place, operation in enumerate(order)}
    return Problem(
        tuple(problem.operations[index] for index in order),
        problem.sizes,
        problem.given,
        problem.wanted,
        tuple((position[first], position[second]) for first, second in problem.before),
        problem.budget,
    )


def check(problem: Problem) -> None:
    """Raises SolverError for a problem that has no meaning: a tensor read before it is written, a negative number."""
    known = set(problem.given)
    for index, operation in enumerate(problem.operations):
        used = (*operation.inputs, *operation.outputs)
        if not all(0 <= tensor < len(problem.sizes) for tensor in used):
            raise SolverError(f"operation {index} uses a tensor that does not exist; give each a size")
        absent = next((tensor for tensor in operation.inputs if tensor not in known), None)
        if absent is not None:
            raise SolverError(f"operation {index} reads tensor {absent}, which none before it writes; order them first")
        if not 0 <= operation.seconds < math.inf or operation.scratch < 0:
            raise SolverError(f"operation {index} takes {operation.seconds} s and {operation.scratch} bytes of scratch")
        known |= set(operation.outputs)
    if min(problem.sizes, default=0) < 0:
        raise SolverError("a tensor has a negative size; sizes are bytes from 0 on")
    if not problem.wanted <= known:
        raise SolverError(f"tensor {min(problem.wanted - known)} is wanted, and no operation writes it")
    if any(first >= second for first, second in problem.before):
        raise SolverError("the order of the operations breaks one of `before`; give a possible order")
