"""Medians and ratios of medians with 95 % intervals, by bootstrap over rounds.

Runs of one block are correlated (same frequency, same neighbours), so single runs are no independent samples and an
interval over them would be too narrow. Rounds are resampled with replacement, both sides of a round jointly, so that a
slow round does not widen the ratio (Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapters 8 and 13:
clusters, percentile interval).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
_TAILS = (2.5, 97.5)
_Z = 1.959963984540054
"""Standard normal quantile of 97.5 %."""

Rounds = Sequence[Sequence[Sequence[float]]]
"""`rounds[round][side]` are seconds of runs."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float


def medians(rounds: Rounds, seed: int = 0) -> list[Estimate]:
    """Seconds per side: the median of all its runs."""
    values, draws = _resampled(rounds, seed)
    return [_estimate(values[side], draws[:, side]) for side in range(len(values))]


def ratio(rounds: Rounds, side: int, base: int, seed: int = 0) -> tuple[Estimate, float]:
    """Median of `side` over median of `base`, and the standard deviation of the logarithm of that ratio."""
    values, draws = _resampled(rounds, seed)
    drawn = draws[:, side] / draws[:, base]
    return _estimate(values[side] / values[base], drawn), float(np.log(drawn).std())


def geometric_mean(ratios: Sequence[tuple[float, float]]) -> Estimate | None:
    """Geometric mean of independent (ratio, standard deviation of its logarithm) pairs; None without any."""
    if not ratios:
        return None
    center = math.fsum(math.log(value) for value, _ in ratios) / len(ratios)
    spread = _Z * math.sqrt(math.fsum(deviation**2 for _, deviation in ratios)) / len(ratios)
    return Estimate(math.exp(center), math.exp(center - spread), math.exp(center + spread))


def _resampled(rounds: Rounds, seed: int) -> tuple[list[float], np.ndarray[tuple[int, int], np.dtype[np.float64]]]:
    """The medians per side, and those of RESAMPLES bootstrap draws of rounds: [draw, side]."""
    sides = range(len(rounds[0]))
    arrays = [[np.asarray(one[side]) for one in rounds] for side in sides]
    values = [float(np.median(np.concatenate(arrays[side]))) for side in sides]
    generator = np.random.default_rng(seed)
    draws = np.empty((RESAMPLES, len(sides)))
    for draw in range(RESAMPLES):
        chosen = generator.integers(0, len(rounds), len(rounds))
        for side in sides:
            draws[draw, side] = np.median(np.concatenate([arrays[side][number] for number in chosen]))
    return values, draws


def _estimate(value: float, draws: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Estimate:
    low, high = np.percentile(draws, _TAILS)
    return Estimate(value, float(low), float(high))
