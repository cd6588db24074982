"""Which weights of a layer are left out: the groups with the lowest scores.

    scores  ->  the weakest groups  ->  zeros in the weights

Arrays are [outputs, inputs, taps] views of what is stored, read in pieces, so that a layer of 100 million weights needs
little more memory than its weights do.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.passes.prune.granularity import Granularity, Shape

_CHUNK = 1 << 22  # weights at once


class Criterion(enum.StrEnum):
    """What a group is worth: the mean of its absolute weights, or the sum of their squares."""

    MAGNITUDE = "magnitude"
    ENERGY = "energy"


def is_finite(weights: NDArray[Any]) -> bool:
    """Whether no weight is NaN or infinite."""
    return all(np.isfinite(part.astype(np.float64)).all() for _, part in _pieces(weights, 1))


def energy(weights: NDArray[Any], scale: float = 1.0) -> float:
    """The sum of the squares of weights / scale."""
    return math.fsum(float(np.square(part.astype(np.float64) / scale).sum()) for _, part in _pieces(weights, 1))


def largest(weights: NDArray[Any]) -> float:
    """The largest absolute weight: scores are relative to it, so that no square overflows or vanishes."""
    return max(
        (float(np.abs(part.astype(np.float64)).max(initial=0.0)) for _, part in _pieces(weights, 1)), default=0.0
    )


def scores(weights: NDArray[Any], group: Shape, criterion: Criterion) -> NDArray[Any]:
    """The score of every group, [outputs / h, inputs / w, taps / t] for groups of h x w x t.

    Of single weights it is the absolute weight, whatever the criterion: both put them in the same order.
    """
    outputs, inputs, taps = weights.shape
    height, width, depth = group
    if group == (1, 1, 1):
        narrow = np.float64 if weights.dtype.itemsize > 4 else np.float32
        singles: NDArray[Any] = np.abs(weights.astype(narrow))
        return singles
    scale = largest(weights) or 1.0
    grid = np.zeros((outputs // height, inputs // width, taps // depth))
    for start, part in _pieces(weights, height if height < outputs else 1):
        worth = np.abs(part.astype(np.float64) / scale)
        if criterion is Criterion.ENERGY:
            np.square(worth, out=worth)
        worth = worth.reshape(len(part), inputs // width, width, taps // depth, depth).sum(axis=(2, 4))
        if height == outputs:
            grid[0] += worth.sum(axis=0)
        else:
            first = start // height
            grid[first : first + len(part) // height] = worth.reshape(-1, height, *worth.shape[1:]).sum(axis=1)
    return grid / math.prod(group)


def weakest(scores: NDArray[Any], count: int) -> NDArray[np.bool_]:
    """The `count` lowest scores; of equal ones the first in memory order."""
    flat = scores.reshape(-1)
    if count <= 0 or count >= flat.size:
        return np.full(scores.shape, count > 0)
    limit = np.partition(flat, count - 1)[count - 1]
    chosen: NDArray[np.bool_] = flat < limit
    ties = np.flatnonzero(flat == limit)
    chosen[ties[: count - int(np.count_nonzero(chosen))]] = True
    return chosen.reshape(scores.shape)


def count_of(sparsity: float, groups: int) -> int:
    """How many of `groups` go, so that at least this share does; below 1 one stays."""
    count = math.ceil(sparsity * groups - 1e-9)
    return min(count, groups - 1) if sparsity < 1 else groups


def prune(weights: NDArray[Any], granularity: Granularity, criterion: Criterion, sparsity: float) -> None:
    """Set the weakest groups of `weights` to zero, in place."""
    group = granularity.group((weights.shape[0], weights.shape[1], weights.shape[2]))
    if granularity.kind == "n:m":
        _prune_among(weights, granularity)
        return
    worth = scores(weights, group, criterion)
    blank(weights, weakest(worth, count_of(sparsity, worth.size)), group)


def blank(weights: NDArray[Any], gone: NDArray[np.bool_], group: Shape) -> None:
    """Set the groups that are `gone` to zero, in place."""
    (outputs, inputs, taps), (height, width, depth) = weights.shape, group
    blocks = weights.reshape(outputs // height, height, inputs // width, width, taps // depth, depth)
    assert np.shares_memory(blocks, weights) or not weights.size
    np.copyto(blocks, np.zeros((), weights.dtype), where=gone[:, None, :, None, :, None])


def _prune_among(weights: NDArray[Any], granularity: Granularity) -> None:
    keep, among = granularity.keep, granularity.among
    for _, part in _pieces(weights, 1):
        rows, inputs, taps = part.shape
        groups = part.reshape(rows, inputs // among, among, taps)
        order = np.argsort(np.abs(groups.astype(np.float64)), axis=2, kind="stable")
        gone = np.zeros(groups.shape, bool)
        np.put_along_axis(gone, order[:, :, : among - keep], True, axis=2)
        np.copyto(groups, np.zeros((), weights.dtype), where=gone)


def _pieces(weights: NDArray[Any], multiple: int) -> Iterator[tuple[int, NDArray[Any]]]:
    """(first output, weights) of ranges of outputs whose number `multiple` divides."""
    rows = max(1, _CHUNK // max(1, math.prod(weights.shape[1:])))
    rows = max(multiple, rows // multiple * multiple)
    for start in range(0, len(weights), rows):
        yield start, weights[start : start + rows]
