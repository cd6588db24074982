"""The trained perceptron: the committed file is that of its record, and retraining keeps what was pruned."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import onnx
import pytest

from graphopt import models
from graphopt.passes.prune.granularity import Granularity
from graphopt.passes.prune.plan import Recipe
from graphopt.pruning.model import prune_model
from graphopt.verify.evaluate import Samples, score

PATH = models.build("mlp-digits")
RECORD: dict[str, Any] = json.loads(PATH.with_suffix(".json").read_text())


def accuracy(model: Any) -> float:
    images, labels = models.digits()
    return float((score(model, Samples(PATH, {"image": images})).values.argmax(-1) == labels).mean())


def test_the_committed_file_is_that_of_the_record() -> None:
    assert RECORD["sha256"] == {PATH.name: hashlib.sha256(PATH.read_bytes()).hexdigest()}
    assert accuracy(PATH) == pytest.approx(RECORD["test_accuracy"], abs=1e-6)
    assert RECORD["test_accuracy"] > 0.98
    assert PATH.stat().st_size < 400_000


def test_retraining_keeps_zeros_and_brings_accuracy_back() -> None:
    from graphopt.models.retrain import retrain

    pruned = prune_model(PATH, Recipe(Granularity.parse("block:16x1"), 0.8)).model
    initializers = pruned.graph.initializers
    weights = {name: initializers[name].const_value.numpy() for name in initializers}
    again = retrain("mlp-digits", weights, epochs=5)
    for name, before in ((name, weights[name]) for name in again):
        if before.ndim > 1:
            assert not again[name][before == 0].any()
            assert (again[name] != before).any()
    proto = onnx.load(PATH)
    for each in proto.graph.initializer:
        if each.name in again:
            each.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(again[each.name]), each.name))
    assert accuracy(pruned) < 0.5
    assert accuracy(proto) > 0.7
