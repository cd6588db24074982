"""Random arrays, the same in every run."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def normal(seed: int, *shape: int, dtype: Any = np.float64) -> NDArray[Any]:
    """Normally distributed numbers."""
    return np.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def between(seed: int, low: float, high: float, *shape: int, dtype: Any = np.float64) -> NDArray[Any]:
    """Numbers from `low` to `high`."""
    return np.asarray(np.random.default_rng(seed).uniform(low, high, shape), dtype)
