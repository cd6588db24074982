"""Elements moved by index, against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "uint8", "bool"])
@pytest.mark.parametrize(("time", "batch"), [(0, 1), (1, 0)])
def test_sequences_are_reversed_up_to_their_lengths(lab: Any, dtype: str, time: int, batch: int) -> None:
    x = np.arange(5 * 5 * 3).reshape(5, 5, 3).astype(dtype)
    feeds = {"x": x, "lengths": np.array([0, 1, 3, 4, 5])}
    body = f"y = ReverseSequence<time_axis = {time}, batch_axis = {batch}>(x, lengths)"
    lab.check(lab.model(body, feeds, {}, ("y",)), feeds)
