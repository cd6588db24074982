"""Ranges of integer inputs are read from the model: labels from the loss, indices from the tables they select from."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.training.data.ranges import Range, integer_ranges, labels_input
from tests.helpers import step_models
from tests.helpers.text_models import parse


def test_labels_are_below_the_number_of_classes() -> None:
    found = integer_ranges(step_models.digits_step().model)["labels"]
    assert (found.low, found.high, found.ignored) == (0, 9, None)
    assert found.why == "the model has 10 classes"


def test_labels_are_seen_through_moves_of_data() -> None:
    model = parse("""
        m (float[6, 7] s, int64[2, 3] t) => (float loss)
        {
            shape = Constant <value_ints = [6]> ()
            flat = Reshape (t, shape)
            loss = SoftmaxCrossEntropyLoss <ignore_index = -100> (s, flat)
        }""")
    assert integer_ranges(model)["t"] == Range(0, 6, -100, "the model has 7 classes")
    assert labels_input(model) == "t"


def test_indices_may_count_from_the_end_and_the_smallest_table_counts() -> None:
    model = parse(
        """m (int64[4] ids, float[9, 2] large, float[5, 2] small) => (float[4, 2] a, float[4, 2] b)
        { a = Gather (large, ids)
          b = Gather (small, ids) }""",
        {"large": (9, 2), "small": (5, 2)},
    )
    assert integer_ranges(model)["ids"] == Range(-5, 4, None, "small has 5 rows")


def test_a_state_value_is_no_input() -> None:
    assert set(integer_ranges(step_models.digits_step().model)) == {"labels"}


@pytest.mark.parametrize(("name", "found"), [("target", "target"), ("y", "y"), ("labels", "labels"), ("other", None)])
def test_without_a_loss_operator_the_name_decides(name: str, found: str | None) -> None:
    model = parse(f"m (float[2] x, float[2] {name}) => (float[2] d) {{ d = Sub (x, {name}) }}")
    assert labels_input(model) == found


def test_the_first_outside_is_found() -> None:
    limits = Range(0, 3, -1, "")
    assert limits.first_outside(np.array([[0, 3], [-1, 2]])) is None
    assert limits.first_outside(np.array([[0, 3], [-1, 4]])) == 3
    assert limits.first_outside(np.array([250], np.uint8)) == 0
    assert limits.first_outside(np.zeros(0, np.int64)) is None
