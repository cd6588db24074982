"""How good a changed model still is: its scores beside those of the model before the change.

    quality = compare(dense_scores, changed_scores, labels)
    quality.kl_mean, quality.flip_rate, quality.changed.top1

Top-1 can hold while likelihoods flatten, and whatever reads the scores pays. So every change that loses something is
judged by more than top-1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.errors import GraphoptError

BINS = 15
"""Bins of equal width of the expected calibration error (Guo et al. 2017, arXiv:1706.04599)."""

TINY = float(np.finfo(np.float32).tiny)
"""The least probability that counts: a Softmax in fp32 rounds smaller ones to zero, and no divergence is infinite."""

_CHUNK = 1 << 22  # scores at once
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Side:
    """One model. The last five need labels, top-5 and the calibration error what they are defined on: None without.

    Entropy and negative log likelihood are means in nats; the others are shares.
    """

    mean_top1_probability: float
    entropy: float
    top1: float | None = None
    top5: float | None = None
    nll: float | None = None
    ece: float | None = None
    worst_class: float | None = None
    """Accuracy on `Quality.worst_class`."""


@dataclass(frozen=True, slots=True)
class Quality:
    """A changed model beside the dense one, on the same samples.

    `kl_mean` and `kl_p99` are the Kullback-Leibler divergence of (dense || changed) in nats, its mean and its 99th
    percentile over samples; `flip_rate` the share of samples whose best class is another. `worst_class` is the class on
    which the changed model is least accurate. `energy` is the share of the sum of squares that each layer keeps.
    `probabilities` tells whether the scores were probabilities already.
    """

    samples: int
    classes: int
    probabilities: bool
    dense: Side
    changed: Side
    kl_mean: float
    kl_p99: float
    flip_rate: float
    worst_class: int | None = None
    energy: Mapping[str, float] = field(default_factory=dict)
    top1_probabilities: tuple[Floats, Floats] = field(default=(np.empty(0), np.empty(0)), compare=False, repr=False)
    """Of every sample, dense and changed: the probability of the best class."""
    margins: tuple[Floats, Floats] = field(default=(np.empty(0), np.empty(0)), compare=False, repr=False)
    """Of every sample: how far the best class is above the second, as a difference of probabilities."""


def compare(
    dense: NDArray[Any],
    changed: NDArray[Any],
    labels: NDArray[Any] | None = None,
    *,
    probabilities: bool | None = None,
    energy: Mapping[str, float] | None = None,
) -> Quality:
    """Compare scores [..., classes] of two models; `labels` [...] are class numbers.

    Args:
        probabilities: whether the scores are probabilities, not logits; None decides by the numbers of `dense`.
        energy: of each layer, the share of the sum of squares that the change kept.

    Raises:
        GraphoptError: shapes that differ, no sample, fewer than two classes, NaN, or labels that are no classes.
    """
    if dense.shape != changed.shape:
        raise GraphoptError(
            f"the scores of the dense model are {dense.shape}, those of the changed one {changed.shape}; compare "
            "models of the same output"
        )
    if dense.ndim < 1 or dense.shape[-1] < 2 or not dense.size:
        raise GraphoptError(f"scores of shape {dense.shape} have no sample with two classes; give samples x classes")
    classes = dense.shape[-1]
    if labels is not None:
        labels = check_labels(labels, dense.shape)
    if probabilities is None:
        probabilities = are_probabilities(dense)
    a, b = dense.reshape(-1, classes), changed.reshape(-1, classes)
    samples = len(a)
    first, second, divergence = _Facts.empty(samples), _Facts.empty(samples), np.empty(samples)
    step = max(1, _CHUNK // classes)
    for start in range(0, samples, step):
        rows = slice(start, start + step)
        given = None if labels is None else labels[rows]
        logs = [
            facts.learn(scores[rows], rows, given, probabilities, whose)
            for facts, scores, whose in ((first, a, "dense"), (second, b, "changed"))
        ]
        divergence[rows] = (np.exp(logs[0]) * (logs[0] - logs[1])).sum(axis=1)
    divergence = np.maximum(divergence, 0.0)  # rounding
    worst = None if labels is None else _worst_class(second.best == labels, labels)
    return Quality(
        samples,
        classes,
        probabilities,
        first.summary(labels, classes, worst),
        second.summary(labels, classes, worst),
        float(divergence.mean()),
        float(np.quantile(divergence, 0.99, method="higher")),
        float((first.best != second.best).mean()),
        worst,
        dict(energy or {}),
        (first.confidence, second.confidence),
        (first.margin, second.margin),
    )


def are_probabilities(scores: NDArray[Any]) -> bool:
    """Whether the numbers of every sample are in 0..1 and add up to one."""
    flat = scores.reshape(-1, scores.shape[-1])
    step = max(1, _CHUNK // flat.shape[1])
    for start in range(0, len(flat), step):
        chunk = flat[start : start + step].astype(np.float64)
        if not ((chunk >= 0).all() and (chunk <= 1 + 1e-3).all() and np.allclose(chunk.sum(axis=1), 1, atol=1e-2)):
            return False
    return True


def check_labels(labels: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.int64]:
    """The labels [samples] as int64, for scores of `shape`.

    Raises:
        GraphoptError: other shape, no integers, or a number that is no class.
    """
    if labels.dtype.kind not in "iu":
        raise GraphoptError(f"labels are {labels.dtype}; save class numbers as integers")
    if labels.shape != shape[:-1] and labels.shape != (*shape[:-1], 1):
        raise GraphoptError(f"labels have shape {labels.shape}, and the scores {shape}: give one label for each sample")
    if labels.size and (int(labels.min()) < 0 or int(labels.max()) >= shape[-1]):
        wrong = int(labels.min()) if int(labels.min()) < 0 else int(labels.max())
        raise GraphoptError(f"labels hold {wrong}, and the classes are 0 to {shape[-1] - 1}; correct the labels")
    return labels.astype(np.int64).reshape(-1)


@dataclass(slots=True)
class _Facts:
    """What is kept of every sample."""

    best: NDArray[np.int64]
    confidence: Floats
    margin: Floats
    entropy: Floats
    loss: Floats
    rank: NDArray[np.int64]

    @staticmethod
    def empty(samples: int) -> _Facts:
        best, rank = np.empty(samples, np.int64), np.empty(samples, np.int64)
        return _Facts(best, np.empty(samples), np.empty(samples), np.empty(samples), np.empty(samples), rank)

    def learn(
        self, scores: NDArray[Any], rows: slice, labels: NDArray[np.int64] | None, probabilities: bool, whose: str
    ) -> Floats:
        """Fill `rows` from their scores; returns the log probabilities."""
        logs = _log_probabilities(scores, probabilities)
        if np.isnan(logs).any():
            sample = rows.start + int(np.isnan(logs).any(axis=1).argmax())
            raise GraphoptError(f"the scores of the {whose} model for sample {sample} are no numbers (NaN or infinite)")
        each = np.arange(len(logs))
        wide = np.exp(logs)
        best = logs.argmax(axis=1)
        top = wide[each, best]
        self.best[rows], self.confidence[rows] = best, top
        self.entropy[rows] = -(wide * logs).sum(axis=1)
        if labels is not None:
            own = logs[each, labels]
            self.loss[rows] = -own
            before = np.arange(logs.shape[1]) < labels[:, None]  # the first of equal scores ranks first, as in argmax
            self.rank[rows] = (logs > own[:, None]).sum(axis=1) + ((logs == own[:, None]) & before).sum(axis=1)
        wide[each, best] = -1.0
        self.margin[rows] = top - wide.max(axis=1)
        return logs

    def summary(self, labels: NDArray[np.int64] | None, classes: int, worst: int | None) -> Side:
        confidence, entropy = float(self.confidence.mean()), float(self.entropy.mean())
        if labels is None:
            return Side(confidence, entropy)
        right = self.best == labels
        top5 = float((self.rank < 5).mean()) if classes > 5 else None
        ece = _calibration_error(self.confidence, right)
        accuracy = float(right[labels == worst].mean())
        return Side(confidence, entropy, float(right.mean()), top5, float(self.loss.mean()), ece, accuracy)


def _log_probabilities(scores: NDArray[Any], probabilities: bool) -> Floats:
    wide = scores.astype(np.float64)
    if probabilities:
        return np.log(np.maximum(wide, TINY))  # NaN stays NaN, here and below
    with np.errstate(invalid="ignore"):  # inf - inf is NaN, which the caller reports
        wide -= wide.max(axis=1, keepdims=True)
        wide -= np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return np.maximum(wide, np.log(TINY))


def _calibration_error(confidence: Floats, right: NDArray[np.bool_]) -> float:
    """Mean distance between confidence and accuracy, over bins weighted by their samples."""
    bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    gaps = np.bincount(bins, weights=confidence - right, minlength=BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def _worst_class(right: NDArray[np.bool_], labels: NDArray[np.int64]) -> int:
    """The class with the lowest accuracy; the first of equal ones."""
    counts = np.bincount(labels)
    with np.errstate(invalid="ignore"):
        accuracy = np.bincount(labels, weights=right) / counts
    return int(np.nanargmin(accuracy))
