"""Problems of recomputation: training steps of chains, with and without skips, and random graphs."""

from __future__ import annotations

import random

from graphopt.solve.recompute.problem import Operation, Problem


def training(layers: int, seed: int = 0, skips: float = 0.0, in_place: bool = False) -> Problem:
    """A chain of layers and its backward pass, each gradient of which reads what its layer read and wrote.

    With `skips`, that share of the layers reads an earlier tensor too; gradients of one tensor are added up.
    """
    chance = random.Random(seed)
    operations: list[Operation] = []
    sizes = [640]

    def tensor(size: int) -> int:
        sizes.append(size)
        return len(sizes) - 1

    made = [0]
    forward: list[tuple[list[int], int, float]] = []
    for layer in range(layers):
        reads = [made[-1]]
        if layer > 2 and chance.random() < skips:
            reads.append(made[chance.randrange(max(0, layer - 8), layer)])
        result = tensor(64 * chance.randrange(4, 20))
        seconds = float(chance.choice([1, 1, 2, 8]))
        reads = list(dict.fromkeys(reads))
        operations.append(Operation(tuple(reads), (result,), seconds))
        forward.append((reads, result, seconds))
        made.append(result)
    loss, gradient = tensor(64), tensor(sizes[made[-1]])
    operations.append(Operation((made[-1],), (gradient, loss), 1.0))
    gradients = {made[-1]: gradient}
    for reads, result, seconds in reversed(forward):
        gradient = gradients.pop(result)
        for read in reads:
            if not read:
                continue
            part = tensor(sizes[read])
            operations.append(Operation((gradient, read, result), (part,), seconds))
            if read in gradients:
                total = tensor(sizes[read])
                pairs = ((part, total),) if in_place else ()
                operations.append(Operation((part, gradients[read]), (total,), 0.5, in_place=pairs))
                part = total
            gradients[read] = part
    return Problem(tuple(operations), tuple(sizes), frozenset([0]), frozenset([loss]))


def graph(count: int, seed: int, in_place: bool = True) -> Problem:
    """A random graph of operations with one to three inputs, some scratch, several outputs, tensors in two parts."""
    chance = random.Random(seed)
    operations: list[Operation] = []
    sizes = [64 * chance.randrange(1, 9) for _ in range(3)]
    halves: list[int] = []
    for _ in range(count):
        reads = tuple({chance.randrange(max(0, len(sizes) - 10), len(sizes)) for _ in range(chance.randrange(1, 4))})
        reads = tuple(read for read in reads if read not in halves) or (0,)
        results: tuple[int, ...]
        if halves:
            results = (halves.pop(),)
        else:
            results = tuple(range(len(sizes), len(sizes) + chance.choice([1, 1, 1, 2])))
            sizes += [chance.choice([64, 128, 64 * chance.randrange(1, 30)]) for _ in results]
            if len(results) == 1 and chance.random() < 0.15:
                halves.append(results[0])
        pairs = tuple((read, new) for read in reads for new in results if in_place and chance.random() < 0.5)
        scratch = chance.choice([0, 0, 64 * chance.randrange(20)])
        seconds = chance.choice([0.0, 1.0, float(chance.randrange(1, 9))])
        operations.append(Operation(reads, results, seconds, scratch, chance.random() < 0.9, pairs))
    return Problem(tuple(operations), tuple(sizes), frozenset(range(3)), frozenset([len(sizes) - 1]))
