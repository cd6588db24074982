"""Intervals: they hold the true value as often as they say, and the ratio's is not widened by slow rounds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from graphopt.bench.intervals import geometric_mean, medians, ratio


def _rounds(generator: np.random.Generator, factor: float, drift: float) -> list[list[list[float]]]:
    """12 rounds of two sides: true median ratio `factor`, rounds slowed down together by up to `drift`."""
    rounds = []
    for _ in range(12):
        slow = 1 + drift * generator.random()
        rounds.append([(slow * scale * generator.lognormal(0, 0.02, 10)).tolist() for scale in (factor, 1.0)])
    return rounds


def test_the_interval_holds_the_true_ratio() -> None:
    generator = np.random.default_rng(0)
    inside = 0
    for trial in range(60):
        found, _ = ratio(_rounds(generator, 1.3, 0.0), 0, 1, seed=trial)
        inside += found.low <= 1.3 <= found.high
    assert inside >= 50  # 95 % of 60 is 57


def test_common_drift_widens_the_medians_more_than_the_ratio() -> None:
    rounds = _rounds(np.random.default_rng(1), 1.0, 1.0)
    first, _ = medians(rounds)
    both, _ = ratio(rounds, 0, 1)
    assert (both.high - both.low) / both.value < 0.7 * (first.high - first.low) / first.value


def test_medians_are_those_of_all_runs() -> None:
    first, second = medians([[[1.0, 2.0], [5.0]], [[3.0], [7.0]]])
    assert (first.value, second.value) == (2.0, 6.0)


def test_geometric_mean() -> None:
    mean = geometric_mean([(2.0, 0.1), (0.5, 0.1)])
    assert mean is not None
    assert mean.value == pytest.approx(1.0)
    assert math.log(mean.high) == pytest.approx(1.96 * 0.1 * math.sqrt(2) / 2, rel=1e-3)
    assert geometric_mean([]) is None
