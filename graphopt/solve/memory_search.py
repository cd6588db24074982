"""The searches of `memory.solve`. Sizes and offsets are in units of the alignment."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from graphopt.solve import memory_exact as exact
from graphopt.solve import memory_layers as layers
from graphopt.solve.memory_table import Found, Table

Offsets = npt.NDArray[np.int64]

_MANY = 96
"""Number of neighbours from which numpy is faster than a loop."""

_SEED = 20231


def best(table: Table, bound: int, effort: int) -> Found:
    """The lowest packing of greedy orders, local search and exact search, in turn, until `bound` is met."""
    count = len(table.sizes)
    result: Found | None = None
    best_order = list(range(count))
    for method, order in _orders(table).items():
        for tightest in (False, True):
            limit = result.height - 1 if result else sum(table.sizes)
            offsets = pack(table, order, tightest, limit)
            if offsets is None:
                continue
            result = Found(offsets, _height(table, offsets), False, f"greedy by {method}")
            best_order = order
            if result.height <= bound:
                return Found(offsets, result.height, True, result.method)
    assert result is not None
    if effort:
        result = layers.improve(table, result, bound, effort)
        if result.height <= bound:
            return result
        offsets = result.offsets
        best_order = sorted(range(count), key=offsets.__getitem__)
        improved = _climb(table, best_order, bound, effort, result.height)
        if improved is not None:
            result = improved
        if result.height > bound:
            result = exact.improve(table, result, bound, effort)
    result.optimal = result.optimal or result.height <= bound
    return result


def _orders(table: Table) -> dict[str, list[int]]:
    """Placement orders. The pressure of a buffer is the load of the most loaded step of its lifetime."""
    sizes, firsts, lasts = table.sizes, table.firsts, table.lasts
    steps = sorted({*firsts, *lasts})
    position = {step: at for at, step in enumerate(steps)}
    load = np.zeros(len(steps), dtype=np.int64)
    for size, first, last in zip(sizes, firsts, lasts, strict=True):
        load[position[first] : position[last] + 1] += size
    pressure = [
        int(load[position[first] : position[last] + 1].max()) for first, last in zip(firsts, lasts, strict=True)
    ]
    life = [last - first + 1 for first, last in zip(firsts, lasts, strict=True)]
    keys: dict[str, Callable[[int], tuple[int, ...]]] = {
        "size": lambda i: (-sizes[i], -life[i], i),
        "area": lambda i: (-sizes[i] * life[i], -sizes[i], i),
        "pressure": lambda i: (-pressure[i], -life[i], -sizes[i], i),
        "pressure and size": lambda i: (-pressure[i], -sizes[i], -life[i], i),
        "lifetime": lambda i: (-life[i], -sizes[i], i),
        "start": lambda i: (firsts[i], -sizes[i], i),
    }
    return {name: sorted(range(len(sizes)), key=key) for name, key in keys.items()}


def pack(table: Table, order: Sequence[int], tightest: bool, limit: int) -> list[int] | None:
    """Place the buffers in `order`, each in the first gap that holds it, or in the tightest.

    None as soon as a buffer ends above `limit`.
    """
    offsets = [-1] * len(table.sizes)
    starts = np.full(len(table.sizes), -1, dtype=np.int64)
    ends = np.zeros(len(table.sizes), dtype=np.int64)
    for index in order:
        size = table.sizes[index]
        neighbours = table.arrays[index]
        if neighbours.size < _MANY:
            near = [n for n in table.neighbours[index] if offsets[n] >= 0]
            taken = sorted((offsets[n], offsets[n] + table.sizes[n]) for n in near)
            at = _tightest_gap(taken, size) if tightest else _first_gap(taken, size)
        else:
            at = _gap_of_many(starts[neighbours], ends[neighbours], size, tightest)
        if at + size > limit:
            return None
        offsets[index] = at
        starts[index] = at
        ends[index] = at + size
    return offsets


def _first_gap(taken: list[tuple[int, int]], size: int) -> int:
    """The lowest offset where `size` fits between the intervals `taken`, sorted by start."""
    at = 0
    for start, end in taken:
        if start - at >= size:
            return at
        if end > at:
            at = end
    return at


def _tightest_gap(taken: list[tuple[int, int]], size: int) -> int:
    """The offset of the smallest gap that holds `size`; the highest end if there is none."""
    at = 0
    chosen, smallest = -1, 0
    for start, end in taken:
        gap = start - at
        if gap >= size and (chosen < 0 or gap < smallest):
            chosen, smallest = at, gap
        if end > at:
            at = end
    return at if chosen < 0 else chosen


def _gap_of_many(starts: Offsets, ends: Offsets, size: int, tightest: bool) -> int:
    """First or tightest gap among many intervals (start -1: not placed yet), without a loop."""
    placed = starts >= 0
    starts, ends = starts[placed], ends[placed]
    if not starts.size:
        return 0
    sort = np.argsort(starts, kind="stable")
    tops = np.maximum.accumulate(ends[sort])
    bottoms = np.concatenate(([0], tops[:-1]))
    gaps = starts[sort] - bottoms
    fitting = np.flatnonzero(gaps >= size)
    if not fitting.size:
        return int(tops[-1])
    return int(bottoms[fitting[np.argmin(gaps[fitting])] if tightest else fitting[0]])


def _height(table: Table, offsets: Sequence[int]) -> int:
    return max((offset + size for offset, size in zip(offsets, table.sizes, strict=True)), default=0)


def _climb(table: Table, order: Sequence[int], bound: int, effort: int, height: int) -> Found | None:
    """Local search over placement orders for a height below `height`; None if no order reaches one.

    A step moves one buffer of the critical pile (the highest buffer, those directly below it, and so on down) forward
    in the order, or swaps it with a buffer that is live at the same time. A result that is not worse replaces the
    order.
    """
    chance = random.Random(_SEED)
    count = len(order)
    cost = count + sum(map(len, table.neighbours))
    order = list(order)
    packing: Found | None = None
    offsets = pack(table, order, False, 1 << 62)
    assert offsets is not None
    current = _height(table, offsets)
    for _ in range(effort // max(cost, 1)):
        pile = _pile(table, offsets, current)
        mover = chance.choice(pile)
        trial = list(order)
        at = trial.index(mover)
        if at and chance.random() < 0.6:
            trial.insert(chance.randrange(at), trial.pop(at))
        elif table.neighbours[mover]:
            other = trial.index(chance.choice(table.neighbours[mover]))
            trial[at], trial[other] = trial[other], trial[at]
        packed = pack(table, trial, False, current)
        if packed is None:
            continue
        order, offsets = trial, packed
        current = _height(table, offsets)
        if current < height:
            height = current
            packing = Found(offsets, height, height <= bound, "local search")
            if packing.optimal:
                break
    return packing


def _pile(table: Table, offsets: list[int], height: int) -> list[int]:
    """The buffers that end at `height`, those directly below them, and so on down to offset 0."""
    ends = [offset + size for offset, size in zip(offsets, table.sizes, strict=True)]
    pile = [index for index, end in enumerate(ends) if end == height]
    seen = set(pile)
    for index in pile:
        for below in table.neighbours[index]:
            if ends[below] == offsets[index] and below not in seen:
                seen.add(below)
                pile.append(below)
    return pile
