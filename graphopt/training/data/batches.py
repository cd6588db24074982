"""Batches of an epoch: shuffled by (seed, epoch) alone, so that a resumed training goes on in the middle of one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from graphopt.errors import FeedError
from graphopt.program.weights import numpy_dtype
from graphopt.training.data.dataset import Array, Dataset, Signature, check_range, check_type
from graphopt.training.data.ranges import is_integer

Augment = Callable[[dict[str, Array], np.random.Generator], dict[str, Array]]
"""Changes a batch; all that is random comes from the generator, which (seed, epoch, batch) determine."""


class Batches(Protocol):
    """Where the loop gets its feeds."""

    @property
    def steps(self) -> int | None:
        """Batches of an epoch; None if only the end tells."""

    @property
    def repeatable(self) -> bool:
        """Whether an epoch gives the same batches each time it is asked for."""

    @property
    def description(self) -> Mapping[str, str]:
        """By what a resumed training knows its data again."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[dict[str, Array]]:
        """The batches of an epoch from the one numbered `start` on."""


class ShuffledBatches:
    """Batches of a data set. The last samples of an epoch that fill no batch are left out; others are, next time."""

    def __init__(self, dataset: Dataset, batch: int, seed: int = 0, augment: Augment | None = None) -> None:
        """Cut `dataset` into batches.

        Raises:
            FeedError: there are fewer samples than one batch holds.
        """
        if len(dataset) < batch:
            raise FeedError(f"{dataset.where} holds {len(dataset)} samples, less than one batch of {batch}; lower it")
        self._dataset, self._batch, self._seed, self._augment = dataset, batch, seed, augment

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return len(self._dataset) // self._batch

    @property
    def repeatable(self) -> bool:
        """Always: the seed and the epoch determine the batches."""
        return True

    @property
    def left_out(self) -> int:
        """Samples that an epoch leaves out."""
        return len(self._dataset) % self._batch

    @property
    def description(self) -> Mapping[str, str]:
        """Types and extents of the arrays."""
        return self._dataset.description

    def epoch(self, epoch: int, start: int = 0) -> Iterator[dict[str, Array]]:
        """The batches of an epoch from the one numbered `start` on."""
        order = shuffled(len(self._dataset), self._seed, epoch)
        for number in range(start, self.steps):
            rows = order[number * self._batch : (number + 1) * self._batch]
            feeds = self._dataset.take(rows)
            if self._augment is not None:
                feeds = self._augment(feeds, np.random.default_rng([self._seed, epoch, number]))
            yield feeds


class LoaderBatches:
    """Batches of a torch DataLoader, or of any iterable of batches that can be iterated again.

    A batch is a mapping by input name, or a sequence: the inputs in order, and the labels last. Short ones are left
    out. A resumed epoch skips batches, which are the same only if the loader gives the same each time.
    """

    def __init__(self, loader: Iterable[Any], signature: Signature) -> None:
        """Wrap `loader` for a step model of this signature."""
        self._loader, self._signature = loader, signature

    @property
    def steps(self) -> None:
        """Only the end tells: short batches are left out."""
        return

    @property
    def repeatable(self) -> bool:
        """Nobody knows."""
        return False

    @property
    def description(self) -> Mapping[str, str]:
        """Nothing is known before the first batch."""
        return {}

    def epoch(self, epoch: int, start: int = 0) -> Iterator[dict[str, Array]]:
        """The batches of a pass over the loader.

        Raises:
            FeedError: it gives no full batch, or one that does not fit the model.
        """
        number = 0
        for given in self._loader:
            feeds = feeds_of(given, self._signature, f"batch {number} of the loader")
            if feeds is None:
                continue
            if number >= start:
                yield feeds
            number += 1
        if not number:
            raise FeedError(
                f"the loader gave no batch of {self._signature.batch} samples in epoch {epoch + 1}; give one that can "
                "be iterated again, and batches of that size"
            )


def feeds_of(given: Any, signature: Signature, where: str) -> dict[str, Array] | None:
    """A batch in the types that the step takes; None for one that is only too short.

    Args:
        given: arrays or tensors by input name, or the inputs in order and the labels last.
        signature: what the step takes.
        where: what the batch is called in messages.

    Raises:
        FeedError: a part is missing, or has another shape, kind of numbers, or an integer outside of its range.
    """
    if isinstance(given, Mapping):
        arrays = {str(name): np.asarray(each) for name, each in given.items()}
    else:
        others = [port.name for port in signature.ports if port.name != signature.labels]
        order = [*others, *([signature.labels] if signature.labels else [])]
        parts = list(given) if isinstance(given, list | tuple) else [given]
        if len(parts) != len(order):
            raise FeedError(f"{where} has {len(parts)} parts; give {', '.join(order)}, or a mapping")
        arrays = dict(zip(order, map(np.asarray, parts), strict=True))
    feeds = {}
    for port in signature.ports:
        if port.name not in arrays:
            raise FeedError(f"{where} lacks the input {port.name!r}; it has {', '.join(arrays) or 'none'}")
        array, wanted = arrays[port.name], tuple(port.shape or ())
        if array.ndim and array.shape[1:] == wanted[1:] and len(array) < wanted[0]:
            return None
        if array.shape != wanted:
            raise FeedError(f"{where}: {port.name!r} has shape {list(array.shape)}, and {list(wanted)} is expected")
        check_type(array, port, where)
        limits = signature.ranges.get(port.name)
        if limits is not None and is_integer(array):
            check_range(array, limits, port.name, where)
        feeds[port.name] = np.asarray(array, numpy_dtype(port.dtype), order="C")
    return feeds


def parts_of(batch: Any, count: int) -> list[Any]:
    """Equal parts of a batch along axis 0, each a mapping or sequence as the batch is."""
    if isinstance(batch, Mapping):
        arrays = {name: np.split(np.asarray(each), count) for name, each in batch.items()}
        return [{name: parts[number] for name, parts in arrays.items()} for number in range(count)]
    parts = [np.split(np.asarray(each), count) for each in batch]
    return [tuple(part[number] for part in parts) for number in range(count)]


def groups(feeds: Iterator[dict[str, Array]], count: int) -> Iterator[list[dict[str, Array]]]:
    """The batches of one update after the other; what fills none is left out."""
    while len(group := list(itertools.islice(feeds, count))) == count:
        yield group


def shuffled(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of an epoch: a permutation that the seed and the epoch determine on every machine."""
    return np.random.default_rng([seed, epoch]).permutation(count)
