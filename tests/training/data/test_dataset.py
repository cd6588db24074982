"""Data sets are checked against the model before a step: names, shapes, kinds of numbers, ranges of integers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from graphopt.errors import FeedError
from graphopt.program.program import Port
from graphopt.training.data.dataset import Dataset, Signature
from graphopt.training.data.ranges import Range

Array = NDArray[Any]
SIGNATURE = Signature(
    (Port("image", "float32", (4, 2, 3)), Port("labels", "int64", (4,))),
    "labels",
    {"labels": Range(0, 9, None, "the model has 10 classes")},
)
IMAGES = np.arange(60, dtype=np.float32).reshape(10, 2, 3)
LABELS = np.arange(10)


def _dataset(**arrays: Array) -> Dataset:
    return Dataset(arrays, SIGNATURE, "train.npz")


def test_batches_are_rows_in_the_types_of_the_step() -> None:
    data = _dataset(image=IMAGES.astype(np.float64), labels=LABELS.astype(np.uint8))
    batch = data.take(np.array([3, 1]))
    assert len(data) == 10
    assert {name: each.dtype.name for name, each in batch.items()} == {"image": "float32", "labels": "int64"}
    np.testing.assert_array_equal(batch["image"], IMAGES[[3, 1]])
    assert batch["labels"].tolist() == [3, 1]


@pytest.mark.parametrize("names", [("image", "labels"), ("x", "y"), ("x", "labels"), ("image", "y")])
def test_x_and_y_stand_for_the_only_input_and_the_labels(names: tuple[str, str]) -> None:
    batch = _dataset(**dict(zip(names, (IMAGES, LABELS), strict=True))).take(slice(0, 2))
    assert set(batch) == {"image", "labels"}


def test_a_mapped_array_stays_on_the_disk(tmp_path: Path) -> None:
    np.save(tmp_path / "image.npy", IMAGES)
    mapped = np.load(tmp_path / "image.npy", mmap_mode="r")
    data = _dataset(image=mapped, labels=LABELS)
    assert data.arrays["image"] is mapped
    np.testing.assert_array_equal(data.take(np.array([9, 0]))["image"], IMAGES[[9, 0]])


def test_arrays_of_the_other_byte_order_are_read_right() -> None:
    batch = _dataset(image=IMAGES.astype(">f4"), labels=LABELS.astype(">i8")).take(slice(0, 4))
    assert batch["image"].dtype.isnative
    np.testing.assert_array_equal(batch["image"], IMAGES[:4])


def test_transforms_come_before_the_shape_is_checked() -> None:
    flat = IMAGES.reshape(10, 6)
    transforms = {"x": lambda batch: batch.reshape(-1, 2, 3)}
    data = Dataset({"x": flat, "y": LABELS}, SIGNATURE, "train.npz", transforms)
    np.testing.assert_array_equal(data.take(slice(2, 4))["image"], IMAGES[2:4])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"image": IMAGES}, "train.npz lacks the input 'labels' or 'y'"),
        ({"labels": LABELS}, "train.npz lacks the input 'image'"),
        ({"image": IMAGES, "labels": LABELS, "z": LABELS}, "holds 'z', which is no input of the model; inputs"),
        ({"image": IMAGES[:, :1], "labels": LABELS}, r"has shape \[10, 1, 3\], and \[samples, 2, 3\] is expected"),
        ({"image": IMAGES, "labels": np.eye(10)}, r"'labels' has shape \[10, 10\], and \[samples\] is expected"),
        ({"image": IMAGES, "labels": LABELS[:9]}, "different numbers of samples .image 10, labels 9"),
        ({"image": IMAGES.astype(np.uint8), "labels": LABELS}, "'image' is uint8, and float32 is expected; scale it"),
        ({"image": IMAGES, "labels": LABELS * 1.0}, "'labels' is float64, and int64 is expected; convert it"),
        ({"image": IMAGES[:0], "labels": LABELS[:0]}, "'image' holds no sample"),
        ({"image": np.float32(3), "labels": LABELS}, "'image' holds no sample"),
        ({"image": IMAGES, "labels": LABELS + 1}, "'labels' holds 10 in sample 9, and the model has 10 classes"),
        ({"image": IMAGES, "labels": LABELS - 1}, "holds -1 in sample 0, .*: it must be from 0 to 9"),
        ({"image": IMAGES.astype(str), "labels": LABELS}, "'image' is .*, and float32 is expected"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_sentence(arrays: dict[str, Array], message: str) -> None:
    with pytest.raises(FeedError, match=message):
        _dataset(**arrays)


def test_a_label_far_inside_is_found() -> None:
    labels = np.zeros((3_000_000,), np.int8)
    labels[2_345_678] = 12
    signature = Signature((Port("labels", "int64", (4,)),), "labels", SIGNATURE.ranges)
    with pytest.raises(FeedError, match="holds 12 in sample 2345678"):
        Dataset({"labels": labels}, signature, "d")


def test_an_ignored_label_is_none() -> None:
    ranges = {"labels": Range(0, 9, -100, "")}
    signature = Signature((Port("labels", "int64", (4, 3)),), "labels", ranges)
    labels = np.full((5, 3), -100)
    assert len(Dataset({"labels": labels}, signature, "d")) == 5


def test_the_batch_is_what_all_inputs_share() -> None:
    assert SIGNATURE.batch == 4
    with pytest.raises(FeedError, match=r"do not share one batch on axis 0 \(a \[4\], b \[5\]\)"):
        _ = Signature((Port("a", "float32", (4,)), Port("b", "float32", (5,))), None, {}).batch
    with pytest.raises(FeedError, match="there are none"):
        _ = Signature((), None, {}).batch
