"""Validation of the feeds of a program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.errors import FeedError
from graphopt.program.program import ITEM_BYTES, Port
from graphopt.program.weights import numpy_dtype
from graphopt.runtime.devices import dlpack

if TYPE_CHECKING:
    from graphopt.runtime.devices.device import Device


def check(
    ports: Sequence[Port],
    feeds: Mapping[str, Any],
    micro_batches: int = 1,
    device: Device | None = None,
    constants: Sequence[str] = (),
) -> dict[str, Any]:
    """The feeds by input name: arrays of the declared dtype and shape, or the given objects for dynamic inputs.

    With several micro-batches, axis 0 is that many times the port's.

    Args:
        constants: inputs of the model whose default values were compiled in.
        device: accepts tensors in its memory (`dlpack.Foreign`); its queue waits for their producers.

    Raises:
        FeedError: an input is missing or unknown, or has another dtype or shape.
    """
    if len(feeds) == len(ports) and micro_batches == 1 and all(_fits(port, feeds.get(port.name)) for port in ports):
        return {port.name: feeds[port.name] for port in ports}
    known = {port.name for port in ports}
    for name in feeds:
        if name in constants:
            raise FeedError(
                f"{name!r} is no input any more: its default value became a constant when the model was compiled; "
                "leave it out, or take the initializer out of the model and compile it again"
            )
        if name not in known:
            raise FeedError(
                f"there is no input {name!r}: the program's inputs are {', '.join(sorted(known)) or 'none'}"
            )
    checked = {}
    for port in ports:
        if port.name not in feeds:
            raise FeedError(f"input {port.name!r} is missing: feed {describe(port, micro_batches)}")
        checked[port.name] = _check(port, feeds[port.name], micro_batches, device)
    return checked


def _fits(port: Port, feed: Any) -> bool:
    """Whether `feed` is exactly what the port declares: a check of less than a microsecond."""
    fits = port.dtype in ITEM_BYTES and type(feed) is np.ndarray and feed.shape == port.shape
    return fits and bool(feed.dtype == numpy_dtype(port.dtype))


def describe(port: Port, micro_batches: int = 1) -> str:
    """Description of a port's feed: `a float32 array of shape (1, 3, 224, 224)`."""
    if port.shape is None:
        return f"a {port.dtype} value of any shape"
    return f"a {port.dtype} array of shape {full_shape(port.shape, micro_batches)}"


def full_shape(shape: tuple[int, ...], micro_batches: int) -> tuple[int, ...]:
    """The caller's shape of an input or output: all micro-batches on axis 0."""
    return shape if micro_batches == 1 else (shape[0] * micro_batches, *shape[1:])


def _check(port: Port, feed: Any, micro_batches: int, device: Device | None) -> Any:
    if port.shape is None:
        return feed
    place = dlpack.outside(feed)
    if place is not None:
        return _shared(port, feed, place, micro_batches, device)
    if not hasattr(feed, "__array__"):
        raise FeedError(
            f"input {port.name!r} is a {type(feed).__name__}, and {describe(port, micro_batches)} is expected: "
            "make it a numpy array"
        )
    array = np.asarray(feed)
    expected = numpy_dtype(port.dtype)
    if array.dtype.kind == "V" and port.dtype == "bfloat16" and array.dtype.itemsize == 2:
        array = array.view(expected)  # a .npy file loses the name of the dtype
    _check_type(port, array.dtype.name, array.shape, micro_batches)
    return array


def _shared(port: Port, feed: Any, place: tuple[int, int], micro_batches: int, device: Device | None) -> dlpack.Foreign:
    """A tensor that is on the device already, used there."""
    if device is None or device.dlpack != place:
        where = "the CPU" if device is None else device.name
        raise FeedError(
            f"input {port.name!r} is in the memory of another device than {where}, where the program runs: "
            "make it a numpy array"
        )
    device.activate()
    foreign = dlpack.take(port.name, feed, device.stream)
    _check_type(port, foreign.dtype, foreign.shape, micro_batches)
    return foreign


def _check_type(port: Port, dtype: str, shape: tuple[int, ...], micro_batches: int) -> None:
    assert port.shape is not None
    if dtype != port.dtype:
        raise FeedError(f"input {port.name!r} is {dtype}, and {port.dtype} is expected: convert it with .astype")
    if shape != full_shape(port.shape, micro_batches):
        raise FeedError(f"input {port.name!r} has shape {shape}, and {describe(port, micro_batches)} is expected")
