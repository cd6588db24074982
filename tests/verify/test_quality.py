"""The quality rows against their definitions, written out sample by sample."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from graphopt.errors import GraphoptError
from graphopt.verify import quality
from graphopt.verify.quality import BINS, compare


def softmax(row: NDArray[np.float64]) -> list[float]:
    exps = [math.exp(x - max(row)) for x in row]
    return [e / sum(exps) for e in exps]


@pytest.mark.parametrize("classes", [2, 5, 12])
@pytest.mark.parametrize("chunk", [1, 1 << 22])
def test_rows_are_their_definitions(classes: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "_CHUNK", chunk)
    generator = np.random.default_rng(classes)
    dense = generator.standard_normal((40, classes)) * 3
    changed = dense + generator.standard_normal((40, classes))
    labels = generator.integers(0, classes, 40)
    found = compare(dense, changed, labels)
    p, q = [softmax(row) for row in dense], [softmax(row) for row in changed]
    kl = [sum(a * math.log(a / b) for a, b in zip(x, y, strict=True)) for x, y in zip(p, q, strict=True)]
    assert found.kl_mean == pytest.approx(sum(kl) / 40)
    assert found.kl_p99 == pytest.approx(max(kl))
    assert found.flip_rate == np.mean(dense.argmax(1) != changed.argmax(1))
    for side, rows in ((found.dense, p), (found.changed, q)):
        hits = [max(range(classes), key=row.__getitem__) == label for row, label in zip(rows, labels, strict=True)]
        assert side.top1 == pytest.approx(np.mean(hits))
        assert side.nll == pytest.approx(-np.mean([math.log(row[k]) for row, k in zip(rows, labels, strict=True)]))
        assert side.entropy == pytest.approx(-np.mean([sum(a * math.log(a) for a in row) for row in rows]))
        assert side.mean_top1_probability == pytest.approx(np.mean([max(row) for row in rows]))
        fifth = [
            label in sorted(range(classes), key=lambda k: -row[k])[:5] for row, label in zip(rows, labels, strict=True)
        ]
        assert side.top5 == (pytest.approx(np.mean(fifth)) if classes > 5 else None)
        gap = 0.0
        for low in range(BINS):
            inside = [i for i, row in enumerate(rows) if min(int(max(row) * BINS), BINS - 1) == low]
            if inside:
                gap += abs(np.mean([hits[i] for i in inside]) - np.mean([max(rows[i]) for i in inside])) * len(inside)
        assert side.ece == pytest.approx(gap / 40)
    accuracy = {k: np.mean(changed.argmax(1)[labels == k] == k) for k in set(labels.tolist())}
    assert found.worst_class == min(sorted(accuracy), key=accuracy.__getitem__)
    assert found.changed.worst_class == pytest.approx(accuracy[found.worst_class])


@given(st.integers(1, 30), st.integers(2, 8), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_a_model_beside_itself_differs_in_nothing(samples: int, classes: int, seed: int) -> None:
    scores = np.random.default_rng(seed).standard_normal((samples, classes)).astype(np.float32)
    found = compare(scores, scores)
    assert (found.kl_mean, found.kl_p99, found.flip_rate) == (0, 0, 0)
    assert found.dense == found.changed
    assert found.dense.top1 is None
    assert (found.margins[0] >= 0).all()


def test_probabilities_and_their_logits_are_the_same() -> None:
    logits = np.random.default_rng(0).standard_normal((50, 7))
    shifted = logits * 0.5
    a = compare(logits, shifted)
    b = compare(*(np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (logits, shifted)))
    assert (a.probabilities, b.probabilities) == (False, True)
    assert a.kl_mean == pytest.approx(b.kl_mean)
    assert a.changed.entropy == pytest.approx(b.changed.entropy)


def test_what_underflows_is_finite() -> None:
    sure = np.array([[1.0, 0.0, 0.0]], np.float32)
    other = np.array([[0.0, 1.0, 0.0]], np.float32)
    assert 80 < compare(sure, other).kl_mean < 90
    assert compare(sure, other).flip_rate == 1
    assert 80 < compare(np.array([[0.0, -np.inf]]), np.array([[-np.inf, 0.0]])).kl_mean < 90


def test_axes_before_the_last_are_samples() -> None:
    scores = np.random.default_rng(0).standard_normal((2, 3, 4))
    labels = scores.argmax(-1)
    found = compare(scores, scores, labels)
    assert (found.samples, found.classes, found.dense.top1) == (6, 4, 1.0)
    assert compare(scores, scores, labels[..., None].astype(np.uint8)).dense.top1 == 1.0


@pytest.mark.parametrize(
    ("dense", "changed", "labels", "sentence"),
    [
        (np.zeros((2, 3)), np.zeros((2, 4)), None, "compare models of the same output"),
        (np.zeros((0, 3)), np.zeros((0, 3)), None, "have no sample with two classes"),
        (np.zeros((2, 1)), np.zeros((2, 1)), None, "have no sample with two classes"),
        (np.zeros((2, 3)), np.array([[0, 0, 0], [0, np.nan, 0]]), None, "changed model for sample 1 are no numbers"),
        (np.array([[0, np.inf, 0]]), np.zeros((1, 3)), None, "dense model for sample 0 are no numbers"),
        (np.zeros((2, 3)), np.zeros((2, 3)), np.array([0.0, 1.0]), "save class numbers as integers"),
        (np.zeros((2, 3)), np.zeros((2, 3)), np.array([0, 3]), "labels hold 3, and the classes are 0 to 2"),
        (np.zeros((2, 3)), np.zeros((2, 3)), np.array([0, -1]), "labels hold -1"),
        (np.zeros((2, 3)), np.zeros((2, 3)), np.array([0]), "give one label for each sample"),
    ],
)
def test_what_cannot_be_compared_is_said(dense: object, changed: object, labels: object, sentence: str) -> None:
    with pytest.raises(GraphoptError, match=sentence):
        compare(dense, changed, labels)  # type: ignore[arg-type]
