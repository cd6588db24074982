"""What runs the stages of a program: this CPU, or the device that the artifact was built for."""

from __future__ import annotations

from collections.abc import Iterable

from graphopt.artifact import Artifact
from graphopt.program import Stage
from graphopt.runtime import device
from graphopt.runtime.device_stage import DeviceStageRunner
from graphopt.runtime.stage import StageRunner

Runner = StageRunner | DeviceStageRunner


def runners(stages: Iterable[Stage], artifact: Artifact, threads: int) -> list[Runner]:
    """A runner for each stage, all on one device; fallback models take `threads` threads, and so do kernels on a CPU.

    Raises:
        ArtifactError: a part of the artifact cannot be used here.
        GraphoptError: the device is missing, or has not enough memory.
    """
    if not device.needs_device(artifact.manifest):
        return [StageRunner(stage, artifact, threads) for stage in stages]
    opened = device.open_device(artifact.manifest)
    return [DeviceStageRunner(stage, artifact, opened, threads) for stage in stages]
