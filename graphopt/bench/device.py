"""graphopt on a device: device facts, and timed blocks of replayed runs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from graphopt.bench import timing
from graphopt.bench.sides import Settings, sets
from graphopt.errors import GraphoptError


def find(target: str) -> dict[str, Any]:
    """The facts of this machine's device for `target` (`Device.facts`).

    Raises:
        GraphoptError: there is no such device, or its Python package is not installed.
    """
    from graphopt.runtime.devices.cuda import CudaDevice
    from graphopt.runtime.devices.opencl import OpenClDevice

    try:
        return CudaDevice().facts() if target == "cuda" else OpenClDevice().facts()
    except GraphoptError as error:
        raise GraphoptError(f"--target {target} is timed on a device: {error}") from error


def level(facts: Mapping[str, Any]) -> str | None:
    """The level to compile for: the description of this GPU, or its architecture; None where the driver compiles."""
    from graphopt.targets.gpu import devices

    return None if facts["arch"] is None else devices.level_of(str(facts["name"]), str(facts["arch"]))


class DeviceSide:
    """An artifact for a device: replays of its graph, timed there, on enough memory to exceed the last-level cache."""

    def __init__(self, model: Path, settings: Settings) -> None:
        """Open one session; the others are opened when it is timed.

        Raises:
            GraphoptError: the artifact cannot run on this machine.
        """
        from graphopt.artifact import open_artifact
        from graphopt.runtime.session import Session

        self._artifact = open_artifact(model)
        self._threads = settings.threads
        self._sessions = [Session(self._artifact, self._threads)]
        assert self._sessions[0].device is not None
        self._device = self._sessions[0].device
        self.device_bytes: int | None = self._sessions[0].device_bytes
        self.sets = sets(int(self._device.facts()["l2_bytes"]), self._sessions[0].device_bytes)

    def run(self, feeds: Mapping[str, Any]) -> Mapping[str, Any]:
        """The outputs by name, from the first session."""
        return self._sessions[0].run(feeds)

    def block(self, feeds: Mapping[str, Any]) -> timing.Block:
        """A block that replays the sessions in turn, without copies to or from the host."""
        from graphopt.runtime.session import Session

        while len(self._sessions) < self.sets:
            self._sessions.append(Session(self._artifact, self._threads, self._device))
        turns = itertools.cycle([session.replay(feeds) for session in self._sessions])

        def block(runs: int) -> list[float]:
            self._device.activate()
            steps: list[Callable[[], None]] = [next(turns) for _ in range(runs + 1)]
            return self._device.laps(steps)[1:]

        return block
