"""The digits for networks of other sizes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.errors import FeedError
from graphopt.training.data.resize import resize

PICTURES = np.random.default_rng(0).random((2, 1, 8, 8), np.float32)


@pytest.mark.parametrize(
    ("sample", "note"),
    [
        ((1, 8, 8), "8 x 8 pixels in 0..1"),
        ((64,), "8 x 8 pixels in 0..1"),
        ((8, 8), "8 x 8 pixels in 0..1"),
        ((1, 32, 32), "enlarged to 32 x 32, each pixel 4 x 4 times"),
        ((3, 16, 24), "enlarged to 16 x 24, each pixel 2 x 3 times"),
        ((1, 28, 28), "enlarged to 28 x 28"),
        ((784,), "enlarged to 28 x 28"),
    ],
)
def test_shapes_and_notes(sample: tuple[int, ...], note: str) -> None:
    function, said = resize(sample, 8)
    assert function(PICTURES).shape == (2, *sample)
    assert said.endswith(note)


def test_every_pixel_becomes_a_block() -> None:
    large = resize((3, 32, 32), 8)[0](PICTURES)
    expected = np.repeat(np.kron(PICTURES, np.ones((4, 4), np.float32)), 3, axis=1)
    np.testing.assert_array_equal(large, expected)


@given(st.integers(8, 70), st.integers(8, 70))
def test_all_of_the_picture_is_shown(height: int, width: int) -> None:
    large = resize((1, height, width), 8)[0](PICTURES)
    assert set(np.unique(large)) == set(np.unique(PICTURES))


@pytest.mark.parametrize("sample", [(1, 4, 4), (63,), (), (2, 3, 4, 5), (1, 8, 7)])
def test_what_is_no_picture_is_refused(sample: tuple[int, ...]) -> None:
    with pytest.raises(FeedError, match="the digits are pictures of 8 x 8, and the model takes samples of"):
        resize(sample, 8)
