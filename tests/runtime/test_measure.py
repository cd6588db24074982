"""Seconds of every call, each kernel measured alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from graphopt.artifact import Artifact
from graphopt.errors import GraphoptError
from graphopt.program.program import KernelCall, Launch, NativeSegment
from graphopt.runtime.measure import measure_calls
from tests.helpers import skips


def test_every_step_has_seconds_and_equal_calls_have_the_same(kernels: bytes) -> None:
    artifact = skips.artifact(kernels, 5)
    said: list[str] = []
    seconds = measure_calls(artifact.program.stages[0], artifact, 1, said.append)
    assert len(seconds) == 5 + 4
    assert all(each > 0 for each in seconds)
    assert len(set(seconds)) == 2  # double and add
    assert said == ["measuring double1", "measuring add4"]


def test_constants_are_the_stages_own_and_other_segments_are_estimated(one_stage: Artifact, mixed: Artifact) -> None:
    assert len(measure_calls(one_stage.program.stages[0], one_stage, 1)) == 2
    for stage in mixed.program.stages:
        steps = sum(len(s.calls) if isinstance(s, NativeSegment) else 1 for s in stage.segments)
        assert len(measure_calls(stage, mixed, 1)) == steps


def test_kernels_of_a_device_are_refused(kernels: bytes) -> None:
    artifact = skips.artifact(kernels, 2)
    stage = artifact.program.stages[0]
    call = KernelCall("double", ("x",), ("s0_0_t1",), launches=(Launch("k", (1, 1, 1), (1, 1, 1), (0, 1)),))
    with pytest.raises(GraphoptError, match="kernel double runs on a device"):
        measure_calls(replace(stage, segments=(NativeSegment((call,)),)), artifact, 1)
