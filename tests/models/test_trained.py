"""The trained LeNet: the committed files agree with each other, with scikit-learn's split, and with a new training."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from safetensors.numpy import load_file

from graphopt import models
from graphopt.models import samples

TRAINED = models.build("lenet-digits").parent
RECORD: dict[str, Any] = json.loads((TRAINED / "lenet-digits.json").read_text())


def test_onnxruntime_reproduces_the_recorded_accuracy() -> None:
    session = onnxruntime.InferenceSession(models.build("lenet-digits"), providers=["CPUExecutionProvider"])
    images, labels = models.digits()
    assert images.shape == (RECORD["test_images"], 1, 8, 8)
    assert images.dtype == np.float32
    assert (images.min(), images.max()) == (0, 1)
    guesses = [int(session.run(None, {"image": image[np.newaxis]})[0].argmax()) for image in images]
    accuracy = float(np.mean(np.equal(guesses, labels)))
    assert accuracy == pytest.approx(RECORD["test_accuracy"], abs=1e-6)
    assert accuracy > 0.98


def test_the_committed_files_are_those_of_the_record() -> None:
    for name, digest in RECORD["sha256"].items():
        assert hashlib.sha256((TRAINED / name).read_bytes()).hexdigest() == digest
    assert RECORD["parameters"] == 13_706


def test_the_test_split_was_not_trained_on() -> None:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    trained_images, images, trained_labels, labels = train_test_split(
        digits.images,
        digits.target,
        test_size=RECORD["test_share"],
        random_state=RECORD["split_seed"],
        stratify=digits.target,
    )
    split = load_file(TRAINED / "lenet-digits.safetensors")
    np.testing.assert_array_equal(split["images"], images)
    np.testing.assert_array_equal(split["labels"], labels)
    rest = load_file(TRAINED / "digits-train.safetensors")
    np.testing.assert_array_equal(rest["images"], trained_images)
    np.testing.assert_array_equal(rest["labels"], trained_labels)
    assert len(images) + RECORD["train_images"] == len(digits.images)


def test_the_training_split_has_the_form_of_the_test_split() -> None:
    images, labels = samples.training_digits()
    assert images.shape == (1437, 1, 8, 8)
    assert (images.dtype, images.min(), images.max()) == (np.float32, 0, 1)
    assert (labels.dtype, sorted(set(labels.tolist()))) == (np.int64, list(range(10)))


@pytest.mark.slow
def test_training_again_gives_the_same_network(tmp_path: Path) -> None:
    import torch

    from graphopt.models.train_lenet import write

    threads = torch.get_num_threads()
    record = write(tmp_path)
    assert torch.get_num_threads() == threads
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(file.name for file in TRAINED.glob("lenet-*"))
    split = "lenet-digits.safetensors"
    assert (tmp_path / split).read_bytes() == (TRAINED / split).read_bytes()
    # Another processor sums in another order: near, not equal.
    assert record["test_accuracy"] == pytest.approx(RECORD["test_accuracy"], abs=0.012)
    assert json.loads((tmp_path / "lenet-digits.json").read_text()) == record
