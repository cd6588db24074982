"""InterleavePhases on planar and blocked tensors, against the bodies of the functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest


@pytest.mark.parametrize("blocked", [False, True])
@pytest.mark.parametrize(
    ("strides", "phases", "shape"),
    [
        ((2, 2), (0, 1, 2, 3), (8, 10)),
        ((2, 2), (0, -1, -1, -1), (8, 10)),
        ((2, 2), (-1, -1, 1, 0), (7, 9)),
        ((1, 3), (2, 0, 1), (4, 15)),
        ((3, 2), (0, -1, 1, 2, -1, 3), (10, 9)),
    ],
)
def test_phases(lab: Any, blocked: bool, strides: Any, phases: Any, shape: Any) -> None:
    b = lab.target.cpu.lanes()
    slots = max(phases) + 1
    x = np.random.default_rng(1).standard_normal((2, 3 * slots, 4, 5, *([b] if blocked else []))).astype(np.float32)
    kind = "InterleavePhasesBlocked" if blocked else "InterleavePhases"
    attributes = f"strides={list(strides)}, phases={list(phases)}, shape={list(shape)}"
    lowered = lab.same(f"y = graphopt.{kind}<{attributes}>(x)", {"x": x})
    assert len(lowered.calls) == 1


def test_what_follows_is_part_of_the_kernel(lab: Any) -> None:
    x = np.random.default_rng(2).standard_normal((1, 8, 4, 4)).astype(np.float32)
    body = "a = graphopt.InterleavePhases<strides=[2,2], phases=[0,1,2,3], shape=[8,8]>(x) y = Relu(a)"
    assert len(lab.same(body, {"x": x}).calls) == 1
