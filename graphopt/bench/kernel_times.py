"""Seconds of every kernel of an artifact, over many runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from graphopt.artifact import Artifact


def medians(artifact: Artifact, feeds: Mapping[str, Any], threads: int, runs: int) -> list[float]:
    """Median seconds of every kernel call and fallback segment, in order of execution."""
    return [float(value) for value in np.median(times(artifact, feeds, threads, runs), axis=0)]


def times(artifact: Artifact, feeds: Mapping[str, Any], threads: int, runs: int) -> np.ndarray[Any, Any]:
    """Seconds [run, call], after a warm-up."""
    session = artifact.session(threads=threads)
    for _ in range(3):
        session.run(feeds)
    return np.array([[call.seconds for call in session.profile(feeds)] for _ in range(runs)]).reshape(runs, -1)
