"""Opens the runners of a program's stages: on this CPU, or on the device that the artifact was built for."""

from __future__ import annotations

from collections.abc import Iterable

from graphopt.program.contents import Contents
from graphopt.program.program import Stage
from graphopt.runtime.device_stage import DeviceStageRunner
from graphopt.runtime.devices.device import Device, needs_device
from graphopt.runtime.devices.opening import open_device
from graphopt.runtime.stage import StageRunner

Runner = StageRunner | DeviceStageRunner


def runners(stages: Iterable[Stage], artifact: Contents, threads: int, device: Device | None = None) -> list[Runner]:
    """A runner for each stage, all on one device; `threads` is for fallback models, and for kernels on a CPU.

    Args:
        device: the device of a device program; None opens it.

    Raises:
        ArtifactError: a part of the artifact cannot be used on this machine.
        GraphoptError: the device is missing, or has not enough memory.
    """
    if not needs_device(artifact.manifest):
        return [StageRunner(stage, artifact, threads) for stage in stages]
    opened = device or open_device(artifact.manifest)
    opened.activate()
    return [DeviceStageRunner(stage, artifact, opened, threads) for stage in stages]
