"""A data set: arrays by input name, one sample in each row, checked against what the step model takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.errors import FeedError
from graphopt.program.program import Port
from graphopt.program.weights import numpy_dtype
from graphopt.training.data.ranges import Range, is_integer

Array = NDArray[Any]
Transform = Callable[[Array], Array]

_AT_ONCE = 1 << 20
"""Elements that are compared with a range at once, so that a mapped array is never copied as a whole."""


@dataclass(frozen=True, slots=True)
class Signature:
    """What a step model takes of the data.

    Attributes:
        ports: its inputs with the batch on axis 0, without the learning rate.
        labels: the one that holds the labels or targets; None without one.
        ranges: integers that an input may hold.
    """

    ports: tuple[Port, ...]
    labels: str | None
    ranges: Mapping[str, Range]

    @property
    def batch(self) -> int:
        """Samples of a step.

        Raises:
            FeedError: an input has no batch on its first axis, or they have different ones.
        """
        extents = {port.name: port.shape[0] if port.shape else 0 for port in self.ports}
        if len(set(extents.values())) != 1 or not all(extents.values()):
            listed = ", ".join(f"{port.name} {list(port.shape or ())}" for port in self.ports)
            raise FeedError(f"the inputs of the step do not share one batch on axis 0 ({listed or 'there are none'})")
        return next(iter(extents.values()))


class Dataset:
    """Samples of every input of a step model; a batch is cut, transformed and converted when it is taken."""

    def __init__(
        self,
        arrays: Mapping[str, Array],
        signature: Signature,
        where: str,
        transforms: Mapping[str, Transform] | None = None,
    ) -> None:
        """Match the arrays to the inputs and check them.

        Args:
            arrays: by input name; `x` stands for the one input that is no label, and `y` or `labels` for the labels.
            signature: what the step model takes.
            where: what the data are called in messages: a file or a folder.
            transforms: functions of a batch, by the name of its array, applied before the shape is checked.

        Raises:
            FeedError: an array is missing or unknown, has another shape, a type that is not converted silently, or an
                integer outside of its range.
        """
        self.where, self.signature = where, signature
        by_name = {port.name: port for port in signature.ports}
        names = {name: _input_of(name, signature) for name in arrays}
        for name, found in names.items():
            if found not in by_name:
                raise FeedError(
                    f"{where} holds {name!r}, which is no input of the model; inputs are {', '.join(by_name) or 'none'}"
                )
        self.arrays = {names[name]: array for name, array in arrays.items()}
        self._transforms = {names[name]: each for name, each in (transforms or {}).items()}
        for port in signature.ports:
            if port.name not in self.arrays:
                spelled = " or 'y'" if port.name == signature.labels else ""
                raise FeedError(f"{where} lacks the input {port.name!r}{spelled}; save an array of that name")
            self._check(port)
        counts = {name: len(array) for name, array in self.arrays.items()}
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise FeedError(f"{where} holds different numbers of samples ({listed}); give as many of each")
        self._count = next(iter(counts.values()), 0)

    def __len__(self) -> int:
        """Number of samples."""
        return self._count

    @property
    def description(self) -> dict[str, str]:
        """Type and extents of each array, by which a resumed training knows its data again."""
        return {name: f"{array.dtype} {list(array.shape)}" for name, array in sorted(self.arrays.items())}

    def take(self, rows: NDArray[np.int64] | slice) -> dict[str, Array]:
        """The batch of these samples, in the types that the step takes."""
        return {port.name: self._convert(port, self.arrays[port.name][rows]) for port in self.signature.ports}

    def _convert(self, port: Port, piece: Array) -> Array:
        piece = np.asarray(piece)
        if port.name in self._transforms:
            piece = self._transforms[port.name](piece)
        return np.asarray(piece, numpy_dtype(port.dtype), order="C")

    def _check(self, port: Port) -> None:
        array = self.arrays[port.name]
        sample = list((port.shape or ())[1:])
        if array.ndim == 0 or not len(array):
            raise FeedError(f"{self.where}: {port.name!r} holds no sample; give at least one batch")
        seen = np.asarray(array[:1])
        seen = self._transforms[port.name](seen) if port.name in self._transforms else seen
        if list(seen.shape[1:]) != sample:
            raise FeedError(
                f"{self.where}: {port.name!r} has shape {list(array.shape)}, and [samples{_listed(sample)}] is "
                "expected; reshape it"
            )
        check_type(seen, port, self.where)
        limits = self.signature.ranges.get(port.name)
        if limits is not None and is_integer(array):
            check_range(array, limits, port.name, self.where)


def check_type(array: Array, port: Port, where: str) -> None:
    """Allow what loses no meaning: another width of float, another type of integer.

    Raises:
        FeedError: another kind of number, such as bytes for floats, whose scale nobody knows.
    """
    wanted = numpy_dtype(port.dtype)
    kinds = {"f": "f", "V": "f", "i": "i", "u": "i", "b": "b"}
    if array.dtype != wanted and kinds.get(array.dtype.kind) != kinds.get(wanted.kind):
        advice = "scale it as the model expects and save it" if wanted.kind in "fV" else "convert it with .astype"
        raise FeedError(f"{where}: {port.name!r} is {array.dtype}, and {port.dtype} is expected; {advice}")


def check_range(array: Array, limits: Range, name: str, where: str, first: int = 0) -> None:
    """Check integers against their range, a part at a time.

    Args:
        first: number of the first sample of `array`, for the message.

    Raises:
        FeedError: an element is outside; names the sample.
    """
    rows = max(1, _AT_ONCE * len(array) // max(array.size, 1))
    for start in range(0, len(array), rows):
        part = np.asarray(array[start : start + rows])
        place = limits.first_outside(part)
        if place is not None:
            sample = first + start + place // max(part[0].size, 1)
            raise FeedError(
                f"{where}: {name!r} holds {part.reshape(-1)[place]} in sample {sample}, and {limits.why}: "
                f"it must be from {limits.low} to {limits.high}"
            )


def _input_of(name: str, signature: Signature) -> str:
    """The input that an array called `name` is for."""
    ports = [port.name for port in signature.ports]
    if name in ports:
        return name
    if name in ("y", "labels") and signature.labels is not None:
        return signature.labels
    others = [port for port in ports if port != signature.labels]
    return others[0] if name == "x" and len(others) == 1 else name


def _listed(extents: Sequence[int]) -> str:
    return "".join(f", {extent}" for extent in extents)
