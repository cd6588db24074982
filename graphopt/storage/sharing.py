"""Weight sharing: the weights of a layer become the few values of a codebook (Han, Mao and Dally 2016, section 3).

k-means in one dimension: centroids begin evenly spread between the smallest and the largest weight, and Lloyd's
iterations run on sorted weights, where a cluster is a range and its mean a difference of two prefix sums. A centroid
that no weight falls to splits the range with the largest error instead, so that one outlier does not cost the others
their values. Zeros take no part: they stay zero, and no other weight becomes one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ITERATIONS = 1000
_STEPS = 1 << 21
"""Prefix sums kept of the sorted weights; of more weights, every n-th."""

CHUNK = 1 << 22
"""Weights that are mapped to their centroid at once."""


@dataclass(frozen=True, slots=True)
class CodebookError:
    """How far the shared weights of a layer are from its own: the largest difference, and RMS over RMS of weights."""

    max_abs: float
    rms_relative: float


def share(weights: NDArray[Any], count: int) -> NDArray[Any] | None:
    """A codebook of at most `count` values for the non-zero `weights`, ascending, in their dtype.

    None where a weight is not finite. Weights with no more distinct values than `count` are kept exactly.
    """
    flat = weights.reshape(-1)
    if not np.isfinite(flat).all():
        return None
    ordered = np.sort(flat[flat != 0])
    if not ordered.size:
        return ordered
    distinct = ordered[np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))]
    if distinct.size <= count:
        return distinct
    del distinct
    clusters = _Clusters(ordered)
    centroids = clusters.filled(np.linspace(clusters.values[0], clusters.values[-1], count), count)
    for _ in range(_ITERATIONS):
        moved = clusters.filled(centroids, count)
        if np.array_equal(moved, centroids):
            break
        centroids = moved
    rounded = (centroids * clusters.scale).astype(ordered.dtype)
    if (rounded == 0).any():  # the mean of weights around zero: none of them may be lost
        rounded[rounded == 0] = ordered[np.argmin(np.abs(ordered))]
    return np.unique(rounded)


def nearest(weights: NDArray[Any], codebook: NDArray[Any]) -> NDArray[np.uint8]:
    """The place of the nearest value of `codebook`, which is ascending and not empty, for each of the weights."""
    wide = codebook.astype(np.float64)
    search = _Search(wide[:-1] / 2 + wide[1:] / 2)
    places = np.empty(weights.size, np.uint8)
    for start in range(0, weights.size, CHUNK):
        places[start : start + CHUNK] = search(weights[start : start + CHUNK].astype(np.float64))
    return places


class _Search:
    """How many of the ascending `limits` are below each value: `searchsorted`, several times faster.

    A grid between the first and the last limit says how many are in cells before a value's own; those in its cell are
    compared with it. Both places come from the same monotonic function, so that rounding does no harm.
    """

    _CELLS = 1 << 14

    def __init__(self, limits: NDArray[np.float64]) -> None:
        self._limits = np.append(limits, np.inf)
        spread = limits[-1] / 2 - limits[0] / 2 if len(limits) else 0.0
        with np.errstate(all="ignore"):
            self._factor = (self._CELLS - 1) / np.float64(spread)
        self._steps = self._CELLS
        if np.isfinite(self._factor):
            cells = np.bincount(self._cell(limits), minlength=self._CELLS)
            self._before = (np.cumsum(cells) - cells).astype(np.uint8)
            self._steps = int(cells.max())

    def _cell(self, values: NDArray[np.float64]) -> NDArray[np.int64]:
        with np.errstate(over="ignore"):  # what is far beyond the last limit lies in the last cell
            shifted = (values / 2 - self._limits[0] / 2) * self._factor
        cells: NDArray[np.int64] = np.clip(shifted, 0, self._CELLS - 1, out=shifted).astype(np.int64)
        return cells

    def __call__(self, values: NDArray[np.float64]) -> NDArray[Any]:
        if self._steps > 4:  # limits too uneven for a grid
            return np.asarray(np.searchsorted(self._limits[:-1], values))
        places = self._before[self._cell(values)]
        for _ in range(self._steps):
            places += self._limits[places] < values
        return places


def error(weights: NDArray[Any], codebook: NDArray[Any], places: NDArray[np.uint8]) -> CodebookError:
    """The codebook error of `weights`, of which each becomes the value at its place."""
    largest, squares, total = 0.0, 0.0, 0.0
    scale = float(np.abs(weights).max(initial=0.0)) or 1.0
    for start in range(0, weights.size, CHUNK):
        own = weights[start : start + CHUNK].astype(np.float64)
        difference = np.abs(codebook[places[start : start + CHUNK]].astype(np.float64) - own)
        largest = max(largest, float(difference.max(initial=0.0)))
        squares += float(np.square(difference / scale).sum())
        total += float(np.square(own / scale).sum())
    return CodebookError(largest, (squares / total) ** 0.5 if total else 0.0)


class _Clusters:
    """Sorted weights, scaled to at most 1, and their prefix sums; a cluster is a range of them."""

    def __init__(self, ordered: NDArray[Any]) -> None:
        self.scale = float(max(abs(float(ordered[0])), abs(float(ordered[-1]))))
        step = -(-ordered.size // _STEPS)
        starts = np.arange(0, ordered.size, step)
        sums, squares = np.empty(starts.size), np.empty(starts.size)
        block = CHUNK // step * step  # whole steps, so that no copy of all weights is made
        for first in range(0, ordered.size, block):
            part = ordered[first : first + block].astype(np.float64) / self.scale
            at, inner = slice(first // step, first // step + -(-part.size // step)), np.arange(0, part.size, step)
            sums[at], squares[at] = np.add.reduceat(part, inner), np.add.reduceat(np.square(part), inner)
        self.values = ordered[starts].astype(np.float64) / self.scale
        self.values[-1] = float(ordered[-1]) / self.scale
        self._ends = np.append(starts, ordered.size)
        self._sums, self._squares = (np.concatenate([[0.0], np.cumsum(each)]) for each in (sums, squares))

    def bounds(self, centroids: NDArray[np.float64]) -> NDArray[np.int64]:
        """Where the range of each centroid begins, and the end."""
        middles = (centroids[:-1] + centroids[1:]) / 2
        return np.concatenate([[0], np.searchsorted(self.values, middles), [len(self.values)]])

    def means(self, bounds: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The mean of each range that is not empty, and its squared error."""
        first, last = bounds[:-1], bounds[1:]
        first, last = first[first < last], last[first < last]
        counts = (self._ends[last] - self._ends[first]).astype(np.float64)
        sums = self._sums[last] - self._sums[first]
        means = np.clip(sums / counts, self.values[first], self.values[last - 1])
        return means, np.maximum(self._squares[last] - self._squares[first] - counts * np.square(means), 0.0)

    def filled(self, centroids: NDArray[np.float64], count: int) -> NDArray[np.float64]:
        """The means of the ranges of `centroids`: one step of Lloyd's. Ranges are split until there are `count`."""
        bounds = np.unique(self.bounds(centroids))
        means, errors = self.means(bounds)
        while len(means) < count:
            worst = int(np.argmax(errors))
            first, last = int(bounds[worst]), int(bounds[worst + 1])
            middle = first + int(np.searchsorted(self.values[first:last], means[worst]))
            middle = min(max(middle, first + 1), last - 1)
            if errors[worst] <= 0.0 or not first < middle < last:
                break
            bounds = np.insert(bounds, worst + 1, middle)
            halves, left = self.means(np.array([first, middle, last]))
            means = np.concatenate([means[:worst], halves, means[worst + 1 :]])
            errors = np.concatenate([errors[:worst], left, errors[worst + 1 :]])
        return means
