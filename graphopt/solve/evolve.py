"""Evolutionary search over tiles, given by their spellings, guided by a cost model that learns from each measurement.

A generation varies the fastest tiles so far in one number each, adds some at random, and measures those that the
learned model predicts to be fastest. The model is a ridge regression of log seconds on the logarithms of the numbers in
a tile's spelling and their products: with few points it separates wide from narrow tiles, with more it finds the
optimum.
(The scheme of Chen et al., "Learning to Optimize Tensor Programs", NeurIPS 2018, with a smaller model.)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Measure = Callable[[Sequence[str]], Mapping[str, float]]
"""Seconds of some tiles; tiles that cannot be built are missing."""

PARENTS = 4
RANDOM_SHARE = 0.25
RIDGE = 1e-2


def evolve(
    space: Sequence[str], known: Mapping[str, float], measure: Measure, trials: int, batch: int = 8, seed: int = 0
) -> dict[str, float]:
    """Measure up to `trials` tiles of `space` that are not `known`; returns all seconds, known and new.

    The same seed, space and seconds give the same search, so an interrupted search continues when its measurements are
    passed as `known`.
    """
    generator = np.random.default_rng(seed)
    measured = {tile: seconds for tile, seconds in known.items() if tile in set(space)}
    tried = set(measured)
    done = 0
    while done < trials and len(tried) < len(space):
        wanted = min(batch, trials - done, len(space) - len(tried))
        chosen = _generation(space, measured, tried, wanted, generator)
        measured.update(measure(chosen))
        tried.update(chosen)
        done += len(chosen)
    return measured


def _generation(
    space: Sequence[str], measured: Mapping[str, float], tried: set[str], wanted: int, generator: np.random.Generator
) -> list[str]:
    """The next tiles to measure: mostly those predicted to be fast, some at random."""
    open_ = [tile for tile in space if tile not in tried]
    explored = round(wanted * RANDOM_SHARE) if measured else wanted
    parents = sorted(measured, key=lambda tile: measured[tile])[:PARENTS]
    children = [tile for tile in open_ if any(_differ_in_one(tile, parent) for parent in parents)] or open_
    chosen = _promising(children, measured, wanted - explored) if measured else []
    rest = [tile for tile in open_ if tile not in chosen]
    picked = generator.permutation(len(rest))[: wanted - len(chosen)]
    return chosen + [rest[index] for index in picked]


def _promising(tiles: Sequence[str], measured: Mapping[str, float], count: int) -> list[str]:
    """The `count` tiles with the least predicted seconds."""
    rows = _features([*measured, *tiles])
    known, asked = rows[: len(measured)], rows[len(measured) :]
    target = np.log(np.array(list(measured.values())))
    weights = np.linalg.solve(known.T @ known + RIDGE * np.eye(known.shape[1]), known.T @ (target - target.mean()))
    order = np.argsort(asked @ weights, kind="stable")
    return [tiles[index] for index in order[:count]]


def _features(tiles: Sequence[str]) -> Array:
    """[tile, feature]: log2 of every number in the spelling, their squares and products, a column per other word."""
    words = sorted({word for tile in tiles for word in re.findall(r"[a-z]+", tile)})
    numbers = [[float(text) for text in re.findall(r"\d+", tile)] for tile in tiles]
    width = max(map(len, numbers), default=0)
    logs = np.array([[np.log2(1 + n) for n in row] + [0.0] * (width - len(row)) for row in numbers])
    logs = logs.reshape(len(tiles), width)
    products = [logs[:, i] * logs[:, j] for i in range(width) for j in range(i, width)]
    named = [[float(word in re.findall(r"[a-z]+", tile)) for tile in tiles] for word in words]
    return np.stack([np.ones(len(tiles)), *logs.T, *products, *map(np.array, named)], axis=1)


def _differ_in_one(a: str, b: str) -> bool:
    """Whether two spellings have the same form and differ in exactly one of their parts."""
    first, second = re.findall(r"\d+|[a-z]+", a), re.findall(r"\d+|[a-z]+", b)
    return len(first) == len(second) and sum(x != y for x, y in zip(first, second, strict=True)) == 1
