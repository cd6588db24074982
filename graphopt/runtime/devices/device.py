"""What a stage needs of a GPU: memory, copies, kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from graphopt.program.program import Launch
from graphopt.program.weights import Array

DEVICES = ("cuda", "opencl")
"""Names of targets whose programs run on a device."""


class Device(Protocol):
    """One GPU with one queue: what is enqueued runs in order. A memory is a number, its address."""

    name: str
    dlpack: tuple[int, int] | None
    """How other libraries call it (DLDeviceType, number); None where they cannot share its memory."""
    stream: int | None
    """The queue as an address that other libraries take; None where they need none."""

    def facts(self) -> dict[str, Any]:
        """What a measurement must be reported with, as JSON values; `l2_bytes` is the size of the last cache."""

    def activate(self) -> None:
        """Let the calling thread use it; before all else, in every thread."""

    def allocate(self, nbytes: int) -> int:
        """Uninitialised device memory; its address, a multiple of 64 at least.

        Raises:
            GraphoptError: there is not so much.
        """

    def host(self, nbytes: int) -> Array:
        """Host memory, as bytes, that copies to and from the device are fast with."""

    def upload(self, target: int, source: Array) -> None:
        """Enqueue a copy of contiguous host memory, which must stay as it is until `synchronize`."""

    def download(self, target: Array, source: int) -> None:
        """Enqueue a copy into contiguous host memory, which holds it after `synchronize`."""

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Enqueue a copy within the device's memory."""

    def fill(self, target: int, value: int, nbytes: int) -> None:
        """Enqueue setting bytes."""

    def follow(self, stream: int) -> None:
        """What is enqueued here from now on waits for what is on `stream` now."""

    def precede(self, stream: int) -> None:
        """What is enqueued on `stream` from now on waits for what is here now."""

    def kernel(self, image: bytes, launch: Launch, pointers: Sequence[int]) -> Callable[[], None]:
        """A function that enqueues `launch.entry` of `image` with `pointers` as its arguments.

        Raises:
            ArtifactError: the image cannot be loaded, has no such entry, or needs more than the device has.
        """

    def record(self, steps: Sequence[Callable[[], None]]) -> Callable[[], None]:
        """A function that enqueues all of `steps`, again and again, at the least cost."""

    def laps(self, steps: Sequence[Callable[[], None]]) -> list[float]:
        """Seconds that each of `steps`, enqueued one behind the other, takes on the device."""

    def synchronize(self) -> None:
        """Wait for all that is enqueued.

        Raises:
            GraphoptError: some of it failed.
        """


def target_of(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    """The manifest's target, empty where it names none."""
    found = manifest.get("target")
    return found if isinstance(found, dict) else {}


def needs_device(manifest: Mapping[str, Any]) -> bool:
    """Whether programs with this manifest run on a GPU."""
    return target_of(manifest).get("name") in DEVICES
