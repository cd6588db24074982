"""The interface of a GPU that a stage needs: memory, copies, kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from graphopt.program.program import Launch
from graphopt.program.weights import Array

DEVICES = ("cuda", "opencl")
"""Names of targets whose programs run on a device."""


class Device(Protocol):
    """One GPU with one in-order queue. Device memory is identified by its address, a number."""

    name: str
    dlpack: tuple[int, int] | None
    """The device in DLPack's terms (DLDeviceType, number); None where other libraries cannot share its memory."""
    stream: int | None
    """Handle of the queue for other libraries; None where they need none."""

    def facts(self) -> dict[str, Any]:
        """The facts to report with a measurement, as JSON values; `l2_bytes` is the size of the last-level cache."""

    def activate(self) -> None:
        """Let the calling thread use the device; every thread calls it first."""

    def allocate(self, nbytes: int) -> int:
        """Uninitialised device memory; returns its address, a multiple of 64 at least.

        Raises:
            GraphoptError: the device has not enough memory.
        """

    def host(self, nbytes: int) -> Array:
        """Host memory, as bytes, with fast copies to and from the device."""

    def upload(self, target: int, source: Array) -> None:
        """Enqueue a copy of contiguous host memory, which must stay unchanged until `synchronize`."""

    def download(self, target: Array, source: int) -> None:
        """Enqueue a copy into contiguous host memory, which is complete after `synchronize`."""

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Enqueue a copy within the device's memory."""

    def fill(self, target: int, value: int, nbytes: int) -> None:
        """Enqueue setting `nbytes` bytes to `value`."""

    def follow(self, stream: int) -> None:
        """Let work enqueued here from now on wait for the current work on `stream`."""

    def precede(self, stream: int) -> None:
        """Let work enqueued on `stream` from now on wait for the current work here."""

    def kernel(self, image: bytes, launch: Launch, pointers: Sequence[int]) -> Callable[[], None]:
        """A function that enqueues `launch.entry` of `image` with `pointers` as its arguments.

        Raises:
            ArtifactError: the image cannot be loaded, has no such entry, or needs more than the device has.
        """

    def record(self, steps: Sequence[Callable[[], None]]) -> Callable[[], None]:
        """A function that enqueues all of `steps` at the least cost, any number of times."""

    def laps(self, steps: Sequence[Callable[[], None]]) -> list[float]:
        """Seconds that each of `steps`, enqueued back to back, takes on the device."""

    def synchronize(self) -> None:
        """Wait for all enqueued work.

        Raises:
            GraphoptError: some of the work failed.
        """


def target_of(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    """The manifest's target, empty where it names none."""
    target = manifest.get("target")
    return target if isinstance(target, dict) else {}


def needs_device(manifest: Mapping[str, Any]) -> bool:
    """Whether programs with this manifest run on a GPU."""
    return target_of(manifest).get("name") in DEVICES
