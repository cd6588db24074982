"""An index of a tensor and its batch, row and column of a product: each other's inverse."""

from __future__ import annotations

import itertools
import math

import pytest

from graphopt.targets.gpu.kernels.gemm.axes import Axes

CASES = {
    "b2 m3 n4": Axes.plain((2, 3, 4), (1, 1, 1), 3),
    "b2 b3m4 n2 n3": Axes.plain((2, 12, 2, 3), (1, 1, 2), 4, 3),
    "m2 b3n2 m4 m5 n4": None,
    "n6 n2": Axes.plain((6, 2), (0, 0, 2), 1),
}


@pytest.mark.parametrize("text", CASES)
def test_round_trips(text: str) -> None:
    axes = Axes.parse(text)
    assert str(axes) == text
    assert CASES[text] in (None, axes)
    places = list(itertools.product(*map(range, axes.shape)))
    flat = [tuple(map(int, axes.flat(place))) for place in places]
    assert len(set(flat)) == len(places) == math.prod(axes.shape)
    assert [tuple(map(int, axes.index(*each))) for each in flat] == places


@pytest.mark.parametrize(
    ("text", "layout"),
    [("m2 b3n2 m4 m5 n4", "NCHW4c"), ("m1 n2 m7 m7 n16", "NCHW16c"), ("b2 b3m4 n2 n3", "plain"), ("b2 m3 n4", "plain")],
)
def test_layout(text: str, layout: str) -> None:
    assert Axes.parse(text).layout == layout
