"""Batches: the seed and the epoch alone decide the order, a training resumes in the middle, loaders are checked."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.errors import FeedError
from graphopt.program.program import Port
from graphopt.training.data.batches import LoaderBatches, ShuffledBatches, feeds_of, groups
from graphopt.training.data.dataset import Array, Dataset, Signature
from graphopt.training.data.ranges import Range

SIGNATURE = Signature(
    (Port("x", "float32", (4, 2)), Port("y", "int64", (4,))), "y", {"y": Range(0, 99, None, "there are 100 classes")}
)


def _dataset(count: int) -> Dataset:
    y = np.arange(count)
    return Dataset({"x": np.stack([y, -y], 1).astype(np.float32), "y": y % 100}, SIGNATURE, "the data")


@given(st.integers(4, 60), st.integers(0, 2**40), st.integers(0, 1000))
def test_an_epoch_takes_every_sample_once_but_for_the_rest(count: int, seed: int, epoch: int) -> None:
    batches = ShuffledBatches(_dataset(count), 4, seed)
    taken = [int(sample) for batch in batches.epoch(epoch) for sample in batch["x"][:, 0]]
    assert len(taken) == batches.steps * 4 == count - batches.left_out
    assert len(set(taken)) == len(taken)


@given(st.integers(0, 10))
def test_an_epoch_goes_on_in_the_middle(start: int) -> None:
    batches = ShuffledBatches(_dataset(43), 4, seed=5)
    whole = [batch["y"].tolist() for batch in batches.epoch(2)]
    assert [batch["y"].tolist() for batch in batches.epoch(2, start)] == whole[start:]


def test_epochs_and_seeds_differ() -> None:
    orders = {
        tuple(batch["y"].tolist())
        for seed in (0, 1)
        for epoch in (0, 1)
        for batch in islice(ShuffledBatches(_dataset(40), 4, seed).epoch(epoch), 1)
    }
    assert len(orders) == 4


def test_the_order_is_the_same_everywhere() -> None:
    """A checkpoint may be resumed on another machine: the permutation is part of the format."""
    first = next(ShuffledBatches(_dataset(40), 4, seed=7).epoch(3))
    assert first["y"].tolist() == [13, 3, 31, 34]


def test_augmentation_is_the_same_again() -> None:
    def noisy(feeds: dict[str, Array], generator: np.random.Generator) -> dict[str, Array]:
        return {**feeds, "x": feeds["x"] + generator.standard_normal(feeds["x"].shape).astype(np.float32)}

    batches = ShuffledBatches(_dataset(20), 4, 0, noisy)
    first, again = ([batch["x"] for batch in batches.epoch(1)] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(list(batches.epoch(1, 3))[0]["x"], first[3])
    assert not np.array_equal(first[0], next(ShuffledBatches(_dataset(20), 4).epoch(1))["x"])


def test_less_than_one_batch() -> None:
    with pytest.raises(FeedError, match="the data holds 3 samples, less than one batch of 4"):
        ShuffledBatches(_dataset(3), 4)


def test_groups_leave_out_what_fills_none() -> None:
    found = list(groups(ShuffledBatches(_dataset(23), 4).epoch(0), 2))
    assert [len(group) for group in found] == [2, 2]


def _pair(count: int = 4) -> tuple[Array, Array]:
    return np.ones((count, 2), np.float32), np.arange(count)


def test_a_torch_loader() -> None:
    import torch

    data = torch.utils.data.TensorDataset(torch.ones(10, 2), torch.arange(10))
    batches = LoaderBatches(torch.utils.data.DataLoader(data, batch_size=4), SIGNATURE)
    found = list(batches.epoch(0))
    assert [batch["y"].tolist() for batch in found] == [[0, 1, 2, 3], [4, 5, 6, 7]]  # the short one is left out
    assert [batch["y"].tolist() for batch in batches.epoch(0, 1)] == [[4, 5, 6, 7]]
    assert not batches.repeatable


def test_mappings_and_pairs() -> None:
    x, y = _pair()
    for given_batch in ({"x": x, "y": y}, (x, y), [x.tolist(), y.tolist()]):
        feeds = feeds_of(given_batch, SIGNATURE, "b") if not isinstance(given_batch, list) else None
        assert feeds is None or feeds["x"].dtype == np.float32


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((np.ones((4, 2)),), "batch 0 of the loader has 1 parts; give x, y"),
        ({"x": _pair()[0]}, "batch 0 of the loader lacks the input 'y'; it has x"),
        (_pair(5), r"'x' has shape \[5, 2\], and \[4, 2\] is expected"),
        ((np.ones((4, 3), np.float32), np.arange(4)), r"'x' has shape \[4, 3\]"),
        ((np.ones((4, 2), np.uint8), np.arange(4)), "'x' is uint8, and float32 is expected"),
        ((_pair()[0], np.array([0, 1, 100, 3])), "'y' holds 100 in sample 2, and there are 100 classes"),
        (_pair(3), "gave no batch of 4 samples in epoch 1"),
    ],
)
def test_bad_batches_of_a_loader(batch: Any, message: str) -> None:
    with pytest.raises(FeedError, match=message):
        list(LoaderBatches([batch], SIGNATURE).epoch(0))


def test_a_generator_serves_one_epoch() -> None:
    def generate() -> Iterator[Any]:
        yield _pair()

    batches = LoaderBatches(generate(), SIGNATURE)
    assert len(list(batches.epoch(0))) == 1
    with pytest.raises(FeedError, match="epoch 2; give one that can be iterated again"):
        list(batches.epoch(1))
